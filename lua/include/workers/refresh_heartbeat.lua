--[[
  Keep the worker `name` alive for `ttl` milliseconds from `time` on, or until it is removed if that is nil.

  The heartbeat key decides. The score in `workers` only tells the sweep where to look.
]]
--- @include "key"
local function refresh_heartbeat(name, time, ttl)
  if ttl then
    redis.call("SET", key("heartbeat", name), "1", "PX", ttl)
    redis.call("ZADD", key("workers"), time + ttl, name)
  else
    redis.call("SET", key("heartbeat", name), "1")
    redis.call("ZADD", key("workers"), "+inf", name)
  end
end
