--[[
  Deprioritise workers that have failed. The next heartbeat of a worker ends this. So does an answer to a poll, for the
  failures that include/load/clear_failure.lua names.

  Keys:
    worker:<name>           HASH    rw
    heartbeat:<name>        STRING  r
    cost_index:<pool>       ZSET    rw
    decay_index:<pool>      ZSET    rw
    cost_heads              HASH    w
    decay_heads             HASH    w
    decay:<pool>            STRING  r
    lottery:<pool>          ZSET    w
    lottery_failing:<pool>  ZSET    w
    odds:<pool>             STRING  w
    reply:<request_id>      STRING  rw
    events                  STREAM  w

  Input:
    KEYS[1]   {<namespace>}
    ARGV[1]   request_id: id of the call; a repeated call with the same id gets the first reply and changes nothing
    ARGV[2]   reply_ttl: the milliseconds for which the reply is kept
    ARGV[3]   decays: '1' if bookings decay, otherwise '0'
    ARGV[4…]  for each worker: name, failure
                name: the worker's name
                failure: 'request' if a request to it failed, 'polls' if status polls did

  Output:
    an array with one entry for each worker, in order; if there are fewer, call again for the rest
      1   the worker is deprioritised
      0   there is no such live worker
      -1  with 'polls': it has never answered a poll in this incarnation, so nothing was done
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "argument_groups"
--- @include "handle_each"
--- @include "is_alive"
--- @include "now"
--- @include "read_load"
--- @include "record_event"
--- @include "run_once"
--- @include "update_cost_index"
--- @include "update_decay_index"
--- @include "update_lottery"
--- @include "whole_number"
--- @include "write_load"
local request_id, reply_ttl, decays = ARGV[1], whole_number(ARGV[2], 1), ARGV[3] == "1"
local calls = argument_groups(4, { "name", "failure" })
if not reply_ttl or not calls or not calls[1] then
  return redis.error_reply("INVALID arguments")
end
for _, call in ipairs(calls) do
  if call.failure ~= "request" and call.failure ~= "polls" then
    return redis.error_reply("INVALID failure")
  end
end

local time = decays and now()

local function set_failing(call)
  local load = read_load(call.name, time)
  if not load or not is_alive(call.name) then
    return 0
  end
  if call.failure == "polls" and redis.call("HGET", load.worker, "polled") ~= "1" then
    return -1
  end
  local was_failing = load.failing
  load.failing = load.failing == "request" and "request" or call.failure -- an answer to a poll does not clear 'request'
  write_load(load)
  update_cost_index(load, decays)
  update_decay_index(load, time)
  update_lottery(load)
  if not was_failing then
    record_event("worker_failing", "worker", call.name, "reason", call.failure)
  end
  return 1
end

return run_once(request_id, reply_ttl, function()
  return handle_each(calls, set_failing)
end)
