--[[
  Register workers with the status that each reports, and make them alive.

  A worker that registers again begins a new incarnation: its leases end, and its load is the queue length that it
  reports. It still drains if it was draining, and keeps its order among workers of the same cost.

  Keys:
    workers                 ZSET    rw
    worker:<name>           HASH    rw
    checkpoints:<name>      STRING  w
    heartbeat:<name>        STRING  rw
    removed:<name>          STRING  w
    draining:<name>         STRING  rw
    capacities              HASH    r
    models                  SET     w
    pools:<model>           STRING  rw
    overflow                SET     rw
    cost_index:<pool>       ZSET    rw
    decay_index:<pool>      ZSET    rw
    cost_heads              HASH    w
    decay_heads             HASH    w
    decay:<pool>            STRING  rw
    lottery:<pool>          ZSET    w
    lottery_failing:<pool>  ZSET    w
    odds:<pool>             STRING  w
    token_workers           HASH    rw
    sequence                STRING  rw
    reply:<request_id>      STRING  rw
    events                  STREAM  w

  Input:
    KEYS[1]   {<namespace>}
    ARGV[1]   decays: '1' if bookings decay, otherwise '0'
    ARGV[2]   max_workers: how many workers may be alive; 0 for any number
    ARGV[3]   max_token_workers: how many workers may be registered by one token; 0 for any number
    ARGV[4…]  for each worker: a registration (include/workers/read_registrations.lua)

  Output:
    an array with one entry for each worker, in order; if there are fewer, call again for the rest
      1   the worker is new
      0   it was registered
      -1  it is not alive, and max_workers others are: nothing was done
      -2  its token has max_token_workers other workers: nothing was done
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "enroll"
--- @include "handle_each"
--- @include "has_room"
--- @include "key"
--- @include "new_load"
--- @include "now"
--- @include "read_registrations"
--- @include "whole_number"
local decays, max_workers, max_token_workers = ARGV[1] == "1", whole_number(ARGV[2], 0), whole_number(ARGV[3], 0)
local registrations, problem = read_registrations(4, {})
if not registrations or not max_workers or not max_token_workers then
  return redis.error_reply(problem or "INVALID arguments")
end
local time = now()

local function refusal_of(registration, was_alive)
  local token = registration.registered_by
  if not was_alive and not has_room(max_workers, time) then
    return -1
  elseif token == "" or max_token_workers == 0 then
    return nil
  end
  local is_known = redis.call("HGET", key("worker", registration.name), "registered_by") == token
  local number = tonumber(redis.call("HGET", key("token_workers"), token) or 0)
  return not is_known and number >= max_token_workers and -2 or nil
end

return handle_each(registrations, function(registration)
  return enroll(registration, time, decays, "worker_registered", refusal_of, new_load)
end)
