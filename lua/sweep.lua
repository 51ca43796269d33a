--[[
  Tidies away workers whose heartbeat has lapsed. Only memory and the length of walks depend on it: every other
  script judges liveness for itself.

  Many replicas call it; the first of an interval does the work, the others find it done.

  Input:
    KEYS[1]  '{<ns>}' the namespace
    ARGV[1]  the interval in milliseconds
    ARGV[2]  about how many index entries are removed at most

  Output:
    an array of the names of the removed workers
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "alive"
--- @include "forget"
--- @include "key"
--- @include "now"
--- @include "whole_number"
local interval = whole_number(ARGV[1], 1)
local budget = whole_number(ARGV[2], 1)
if not interval or not budget then
  return redis.error_reply("INVALID arguments")
end

if redis.call("EXISTS", key("sweep")) == 1 then
  return {}
end

local time = now()
local removed = {}
local work = 0
for _, name in ipairs(redis.call("ZRANGEBYSCORE", key("workers"), "-inf", time, "LIMIT", 0, budget)) do
  if work >= budget then
    break
  elseif alive(name) then -- the clock was set back and forth: look again when its key will be gone
    redis.call("ZADD", key("workers"), time + redis.call("PTTL", key("heartbeat", name)), name)
  else
    work = work + forget(name)
    removed[#removed + 1] = name
  end
end
-- Last, because a full store refuses it, but not what makes room.
redis.call("SET", key("sweep"), "1", "PX", interval)
return removed
