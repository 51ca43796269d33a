--[[
  Register workers. They are alive from now on, with what each of them reports.

  A worker that registers again begins a new incarnation: its leases end, and its load is the queue length that it
  reports. It still drains if it was draining, and keeps its order among workers of the same cost.

  Keys:
    workers                 ZSET    w
    worker:<name>           HASH    rw
    checkpoints:<name>      STRING  w
    heartbeat:<name>        STRING  rw
    removed:<name>          STRING  w
    draining:<name>         STRING  w
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
    sequence                STRING  rw
    reply:<request_id>      STRING  rw

  Input:
    KEYS[1]   {<namespace>}
    ARGV[1]   decays: '1' if bookings decay, otherwise '0'
    ARGV[2…]  for each worker: a registration (include/workers/read_registrations.lua)

  Output:
    an array with one entry for each worker, in order; if there are fewer, call again for the rest
      1  the worker is new
      0  it was registered
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "enroll"
--- @include "handle_each"
--- @include "new_load"
--- @include "now"
--- @include "read_registrations"
local decays = ARGV[1] == "1"
local registrations, problem = read_registrations(2, {})
if not registrations then
  return redis.error_reply(problem)
end
local time = now()

local function is_allowed()
  return true
end

return handle_each(registrations, function(registration)
  return enroll(registration, time, decays, is_allowed, new_load)
end)
