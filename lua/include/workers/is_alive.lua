--[[
  Return true if the worker `name` is alive: its heartbeat key exists. This does not depend on any sweep.
]]
--- @include "key"
local function is_alive(name)
  return redis.call("EXISTS", key("heartbeat", name)) == 1
end
