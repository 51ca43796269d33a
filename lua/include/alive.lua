--[[
  Whether a worker is alive at this instant: whether its heartbeat key exists. No sweep need have run.
]]
--- @include "key"
local function alive(name)
  return redis.call("EXISTS", key("heartbeat", name)) == 1
end
