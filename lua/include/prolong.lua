--[[
  Lets a worker live for `expiration` more milliseconds from `time`, or until it is removed if that is nil.

  The heartbeat key decides; the score in 'workers' only tells the sweep where to look.
]]
--- @include "key"
local function prolong(name, time, expiration)
  if expiration then
    redis.call("SET", key("heartbeat", name), "1", "PX", expiration)
    redis.call("ZADD", key("workers"), time + expiration, name)
  else
    redis.call("SET", key("heartbeat", name), "1")
    redis.call("ZADD", key("workers"), "+inf", name)
  end
end
