--[[
  Apply the heartbeat of a replica. The replicas share the polling of workers.

  Keys:
    replicas  ZSET    rw
    events    STREAM  w

  Input:
    KEYS[1]  {<namespace>}
    ARGV[1]  replica: the id of the replica
    ARGV[2]  ttl: the milliseconds after which its membership expires; 0 if it leaves

  Output:
    an array with the ids of all live replicas, in no order
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "key"
--- @include "now"
--- @include "record_event" when called
--- @include "whole_number"
local MAX_TTL = 60000 -- milliseconds

local replica, ttl = ARGV[1], whole_number(ARGV[2], 0)
if not ttl then
  return redis.error_reply("INVALID time")
end

local replicas = key("replicas")
local time = now()
if ttl > 0 then
  -- If the clock of Redis was set back, replicas that are gone would stay for as long.
  for _, each in ipairs(redis.call("ZRANGEBYSCORE", replicas, time + MAX_TTL + 1, "+inf")) do
    redis.call("ZADD", replicas, time + ttl, each)
  end
  local is_new = redis.call("ZADD", replicas, time + ttl, replica) == 1
  redis.call("PEXPIRE", replicas, MAX_TTL + ttl)
  if is_new then
    record_event("replica_joined", "replica", replica)
  end
elseif redis.call("ZREM", replicas, replica) == 1 then
  record_event("replica_left", "replica", replica, "reason", "it has ended")
end
for _, each in ipairs(redis.call("ZRANGEBYSCORE", replicas, "-inf", time)) do
  record_event("replica_left", "replica", each, "reason", "its membership has expired")
end
redis.call("ZREMRANGEBYSCORE", replicas, "-inf", time)
return redis.call("ZRANGE", replicas, 0, -1)
