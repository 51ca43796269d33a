--[[
  Apply the heartbeat of a replica, or end its membership. Replicas whose membership has expired are removed.

  Keys:
    replicas              ZSET    rw
    replica_descriptions  HASH    rw
    listings              HASH    rw
    events                STREAM  w

  Input:
    KEYS[1]  {<namespace>}
    ARGV[1]  replica: the id of the replica
    ARGV[2]  ttl: the milliseconds after which its membership expires; 0 if it leaves
    ARGV[3]  description: a JSON object; `name` is the replica's name in events. The first one of a replica is stored.
               '' to extend a membership only if it has not expired

  Output:
    an array with the ids of all live replicas, in arbitrary order
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "key"
--- @include "now"
--- @include "record_event" when called
--- @include "whole_number"
local MAX_TTL = 60000 -- milliseconds
local MAX_LISTINGS = 1000 -- whose replicas are not alive

local replica, ttl, description = ARGV[1], whole_number(ARGV[2], 0), ARGV[3]
if not ttl or not description then
  return redis.error_reply("INVALID arguments")
end

local replicas, descriptions, listings = key("replicas"), key("replica_descriptions"), key("listings")
local time = now()

local function name_in(text)
  local is_json, fields = pcall(cjson.decode, text)
  return is_json and type(fields) == "table" and type(fields.name) == "string" and fields.name
end

local function leave(id, reason)
  local text = redis.call("HGET", descriptions, id)
  redis.call("ZREM", replicas, id)
  redis.call("HDEL", descriptions, id)
  record_event("replica_left", "replica", text and name_in(text) or id, "reason", reason)
end

if ttl > 0 then
  -- If the clock of Redis was set back, replicas that are gone would stay for as long.
  for _, each in ipairs(redis.call("ZRANGEBYSCORE", replicas, time + MAX_TTL + 1, "+inf")) do
    redis.call("ZADD", replicas, time + ttl, each)
  end
  local expires_at = tonumber(redis.call("ZSCORE", replicas, replica) or 0)
  local is_refused = description == "" and expires_at <= time
  if not is_refused and redis.call("ZADD", replicas, time + ttl, replica) == 1 then
    redis.call("HSET", descriptions, replica, description)
    record_event("replica_joined", "replica", name_in(description) or replica)
  end
else
  redis.call("HDEL", listings, replica)
  if redis.call("ZSCORE", replicas, replica) then
    leave(replica, "it has ended")
  end
end
for _, each in ipairs(redis.call("ZRANGEBYSCORE", replicas, "-inf", time)) do
  leave(each, "its heartbeat has expired")
end
-- A replica that is cut off expires, and needs its number when it returns, to notice a loss. A replica that has crashed
-- does not return. Its number stays until there are too many.
if redis.call("HLEN", listings) > redis.call("ZCARD", replicas) + MAX_LISTINGS then
  local found = redis.call("HGETALL", listings)
  for i = 1, #found, 2 do
    if not redis.call("ZSCORE", replicas, found[i]) then
      redis.call("HDEL", listings, found[i])
    end
  end
end
return redis.call("ZRANGE", replicas, 0, -1)
