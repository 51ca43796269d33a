--[[
  Notes that a worker is in the rest of its models no more (include/pools_of.lua). What was learned of all such workers
  is kept for an hour after the last one has left.

  Input:
    name  the worker's name
]]
--- @include "key"
local function leave_rest(name)
  if redis.call("SREM", key("rest"), name) == 1 and redis.call("EXISTS", key("rest")) == 0 then
    redis.call("PEXPIRE", key("fade", "\31"), 3600000)
  end
end
