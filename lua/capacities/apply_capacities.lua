--[[
  Decide the capacities of registered workers again, after a capacity was set or the settings of a replica changed. The
  next dispatch uses the new capacities.

  Keys:
    worker:<name>       HASH    rw
    heartbeat:<name>    STRING  r
    capacities          HASH    r
    cost_index:<pool>   ZSET    rw
    decay_index:<pool>  ZSET    rw
    cost_heads          HASH    w
    decay_heads         HASH    w
    decay:<pool>        STRING  r
    reply:<request_id>  STRING  rw

  Input:
    KEYS[1]   {<namespace>}
    ARGV[1]   request_id: id of the call; a repeated call with the same id gets the first reply and changes nothing
    ARGV[2]   reply_ttl: the milliseconds for which the reply is kept
    ARGV[3]   decays: '1' if bookings decay, otherwise '0'
    ARGV[4…]  for each worker: name, registration, default_capacity
                name: the worker's name
                registration: the number of its registration; nothing is done if it has registered again since
                default_capacity: the capacity for its models according to the settings; '' if there is none

  Output:
    an array with one entry for each worker, in order; if there are fewer, call again for the rest
      1  its capacity was decided, and may be the same as before
      0  it is not alive, or has registered again
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "argument_groups"
--- @include "decide_capacity"
--- @include "handle_each"
--- @include "is_alive"
--- @include "now"
--- @include "read_load"
--- @include "run_once"
--- @include "update_cost_index"
--- @include "update_decay_index"
--- @include "whole_number"
--- @include "write_load"
local request_id, reply_ttl, decays = ARGV[1], whole_number(ARGV[2], 1), ARGV[3] == "1"
local calls = argument_groups(4, { "name", "registration", "default_capacity" })
if not reply_ttl or not calls or not calls[1] then
  return redis.error_reply("INVALID arguments")
end
for _, call in ipairs(calls) do
  local has_default = call.default_capacity ~= ""
  call.default_capacity = whole_number(call.default_capacity, 1)
  if has_default and not call.default_capacity then
    return redis.error_reply("INVALID capacity")
  end
end

local time = now()

local function apply(call)
  local load = read_load(call.name, decays and time)
  if not load or not is_alive(call.name) then
    return 0
  end
  local fields = redis.call("HMGET", load.worker, "registration", "models", "reported_capacity", "capacity",
    "capacity_source")
  local registration, models, reported, before, source_before = unpack(fields, 1, 5)
  if registration ~= call.registration then
    return 0
  end
  -- A worker that an older version of the controller has registered lacks reported_capacity and capacity_source. Its
  -- capacity is always a reported one.
  local is_complete = reported and true
  reported = tonumber(reported or before)
  local capacity, source = decide_capacity(call.name, cjson.decode(models), reported, call.default_capacity)
  if source ~= source_before or not is_complete then
    redis.call("HSET", load.worker, "capacity_source", source, "reported_capacity", reported or "")
  end
  if capacity ~= load.capacity then
    load.untracked_own_rate = load.untracked_own_rate or load.untracked
    load.capacity = capacity
    write_load(load, "capacity", capacity or "")
    update_cost_index(load, decays)
    update_decay_index(load, decays and time)
  end
  return 1
end

return run_once(request_id, reply_ttl, function()
  return handle_each(calls, apply)
end)
