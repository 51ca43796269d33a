--[[
  Return true if the worker `name` is alive: its heartbeat key exists. An expired worker is not alive, even
  before the sweep purges it.
]]
--- @include "key"
local function is_alive(name)
  return redis.call("EXISTS", key("heartbeat", name)) == 1
end
