--[[
  Set the capacity of a worker, or of the workers of a model, or remove what was set. A worker need not be registered.

  A worker gets the capacity when it registers. apply_capacities.lua changes the capacities of registered workers.

  Keys:
    capacities          HASH    rw
    reply:<request_id>  STRING  rw

  Input:
    KEYS[1]  {<namespace>}
    ARGV[1]  request_id: id of the call; a repeated call with the same id gets the first reply and changes nothing
    ARGV[2]  reply_ttl: the milliseconds for which the reply is kept
    ARGV[3]  limit: for how many workers and models a capacity may be set
    ARGV[4]  target: 'worker:<name>' or 'model:<name>'
    ARGV[5]  capacity: how many requests the worker, or each worker of the model, runs at once; '' to remove what was
               set

  Output:
    the capacity that was set before; '' if there was none
    -1 if capacities are set for too many workers and models; nothing was done
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "key"
--- @include "whole_number"
local request_id, reply_ttl, limit = ARGV[1], whole_number(ARGV[2], 1), whole_number(ARGV[3], 1)
local target, is_removal, capacity = ARGV[4], ARGV[5] == "", whole_number(ARGV[5], 1)
if not reply_ttl or not limit then
  return redis.error_reply("INVALID arguments")
elseif not target:match("^worker:.") and not target:match("^model:.") then
  return redis.error_reply("INVALID target")
elseif not is_removal and not capacity then
  return redis.error_reply("INVALID capacity")
end

local reply = key("reply", request_id)
local earlier = redis.call("GET", reply)
if earlier then
  return earlier
end

local capacities = key("capacities")
local before = redis.call("HGET", capacities, target)
if not before and not is_removal and redis.call("HLEN", capacities) > limit then -- one field is the version
  return -1
end
local version = (redis.call("HGET", capacities, "version") or 0) + 1
if is_removal then
  redis.call("HSET", capacities, "version", version) -- first: if Redis's memory is full, it rejects this
  redis.call("HDEL", capacities, target)
else
  redis.call("HSET", capacities, "version", version, target, capacity)
end
redis.call("SET", reply, before or "", "PX", reply_ttl)
return before or ""
