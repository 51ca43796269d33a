--[[
  Register workers again that Redis lost, each only if it is not alive and was not removed a short while ago.

  Keys:
    workers                 ZSET    rw
    worker:<name>           HASH    rw
    checkpoints:<name>      STRING  w
    heartbeat:<name>        STRING  rw
    removed:<name>          STRING  rw
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
    ARGV[3…]  for each worker: a registration (include/workers/read_registrations.lua), then draining, polled
                draining: '1' if the worker is draining, otherwise '0'
                polled: '1' if it has answered a status poll, otherwise '0'

  Output:
    an array with one entry for each worker, in order; if there are fewer, call again for the rest
      1   the worker was restored
      -1  it is alive, or was removed, or max_workers others are alive: nothing was done
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
local decays, max_workers = ARGV[1] == "1", whole_number(ARGV[2], 0)
local registrations, problem = read_registrations(3, { "draining", "polled" })
if not registrations or not max_workers then
  return redis.error_reply(problem or "INVALID arguments")
end
local time = now()

local function refusal_of(registration, was_alive)
  local is_lost = not was_alive and redis.call("EXISTS", key("removed", registration.name)) == 0
  return not (is_lost and has_room(max_workers, time)) and -1 or nil
end

return handle_each(registrations, function(registration)
  return enroll(registration, time, decays, "worker_restored", refusal_of, new_load)
end)
