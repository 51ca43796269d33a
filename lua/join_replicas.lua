--[[
  Tells the store that a replica is there, and the replica which others are: they share the polling of workers.

  Input:
    KEYS[1]  '{<ns>}' the namespace
    ARGV[1]  the replica's id
    ARGV[2]  for how many milliseconds it is believed to be there; 0 if it leaves

  Output:
    an array with the ids of all replicas that are there, in no order
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "key"
--- @include "now"
--- @include "whole_number"
local LONGEST = 60000 -- milliseconds: no replica stays for longer

local stay = whole_number(ARGV[2], 0)
if not stay then
  return redis.error_reply("INVALID time")
end
local replicas = key("replicas")
local time = now()
if stay > 0 then
  -- Where the clock was set back, replicas that are gone would stay for as long.
  for _, replica in ipairs(redis.call("ZRANGEBYSCORE", replicas, time + LONGEST + 1, "+inf")) do
    redis.call("ZADD", replicas, time + stay, replica)
  end
  redis.call("ZADD", replicas, time + stay, ARGV[1])
  redis.call("PEXPIRE", replicas, 60000 + stay)
else
  redis.call("ZREM", replicas, ARGV[1])
end
redis.call("ZREMRANGEBYSCORE", replicas, "-inf", time)
return redis.call("ZRANGE", replicas, 0, -1)
