--[[
  Update registered workers from their answers to a probe, each only if its registration is unchanged.

  The incarnation of the worker and its leases continue. Its answer is applied like a report.

  Keys:
    workers                 ZSET    w
    worker:<name>           HASH    rw
    checkpoints:<name>      STRING  rw
    heartbeat:<name>        STRING  rw
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
    ARGV[2]   in_flight_window: for how many milliseconds a request may be on its way to a worker
    ARGV[3…]  for each worker: a registration (include/workers/read_registrations.lua), then registration, age
                registration: the number of the registration that must be unchanged
                age: the milliseconds since the worker reported its state

  Output:
    an array with one entry for each worker, in order; if there are fewer, call again for the rest
      0   the worker was updated
      -1  it is not alive, or has registered again: nothing was done
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "apply_report"
--- @include "clear_failure"
--- @include "enroll"
--- @include "handle_each"
--- @include "key"
--- @include "now"
--- @include "read_registrations"
--- @include "whole_number"
local decays, in_flight_window = ARGV[1] == "1", whole_number(ARGV[2], 0)
local registrations, problem = read_registrations(3, { "registration", "age" })
if not registrations or not in_flight_window then
  return redis.error_reply(problem or "INVALID arguments")
end
local time = now()

local function refusal_of(registration, was_alive)
  local number = was_alive and redis.call("HGET", key("worker", registration.name), "registration")
  return number ~= registration.registration and -1 or nil
end

local function updated_load(registration, load)
  clear_failure(load)
  local is_engine = registration.engine ~= ""
  return load,
    apply_report(load, registration.queue_length, time - registration.age, in_flight_window, time, decays, is_engine)
end

return handle_each(registrations, function(registration)
  return enroll(registration, time, decays, "worker_registered", refusal_of, updated_load)
end)
