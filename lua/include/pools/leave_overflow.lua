--[[
  Remove a worker from the set of those in overflow pools. What was learned of all of them is kept for an hour after the
  last one has left.

  Input:
    name  the worker's name
]]
--- @include "key"
local function leave_overflow(name)
  if redis.call("SREM", key("overflow"), name) == 1 and redis.call("EXISTS", key("overflow")) == 0 then
    redis.call("PEXPIRE", key("decay", "\31"), 3600000)
  end
end
