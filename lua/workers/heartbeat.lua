--[[
  Apply the queue lengths that workers report: with heartbeats, which keep them alive, or with answers to polls. Those
  keep only engines alive, which send no heartbeats.

  A worker that is not alive is not revived, whether or not a sweep has purged it. It must register. A heartbeat clears
  all failures. An answer to a poll clears the failures that include/load/clear_failure.lua names. Late reports do so
  too.

  Keys:
    workers                 ZSET    w
    worker:<name>           HASH    rw
    checkpoints:<name>      STRING  rw
    heartbeat:<name>        STRING  rw
    draining:<name>         STRING  w
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
    leases                  ZSET    rw
    token_leases            HASH    rw
    token_workers           HASH    rw
    reply:<request_id>      STRING  rw
    events                  STREAM  w

  Input:
    KEYS[1]   {<namespace>}
    ARGV[1]   request_id: id of the call; a repeated call with the same id gets the first reply and changes nothing
    ARGV[2]   reply_ttl: the milliseconds for which the reply is kept
    ARGV[3]   heartbeat_ttl: the expiration of the heartbeats in milliseconds; '' for reports that keep no worker alive
    ARGV[4]   of_polls: '1' for answers to polls, '0' for heartbeats
    ARGV[5]   decays: '1' if bookings decay, otherwise '0'
    ARGV[6]   in_flight_window: for how many milliseconds a request may be on its way to a worker
    ARGV[7…]  for each worker: name, queue_length, age
                name: the worker's name
                queue_length: the number of requests that it is running or has waiting; '' if it is unknown
                age: the milliseconds since the worker reported that

  Output:
    an array with one entry for each worker, in order; if there are fewer, call again for the rest
      1  the worker is registered
      0  it is not
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "apply_report"
--- @include "argument_groups"
--- @include "clear_failure" when called
--- @include "expire_leases"
--- @include "handle_each"
--- @include "key"
--- @include "now"
--- @include "purge_worker" when called
--- @include "read_load"
--- @include "record_event" when called
--- @include "refresh_heartbeat"
--- @include "run_once"
--- @include "spend"
--- @include "update_cost_index"
--- @include "update_decay_index"
--- @include "update_lottery" when called
--- @include "whole_number"
--- @include "write_load"
local UNKNOWN_TIME = 10000 -- the mean time of a request, in milliseconds, where nothing is known of it

local request_id, reply_ttl = ARGV[1], whole_number(ARGV[2], 1)
local keeps_alive, heartbeat_ttl, of_polls = ARGV[3] ~= "", whole_number(ARGV[3], 1), ARGV[4] == "1"
local decays, in_flight_window = ARGV[5] == "1", whole_number(ARGV[6], 0)
local reports = argument_groups(7, { "name", "queue_length", "age" })
if keeps_alive and not heartbeat_ttl then
  return redis.error_reply("INVALID expiration")
elseif not reply_ttl or not in_flight_window or not reports or not reports[1] then
  return redis.error_reply("INVALID arguments")
end
for _, report in ipairs(reports) do
  local is_unknown = report.queue_length == ""
  report.queue_length = whole_number(report.queue_length, 0)
  report.age = whole_number(report.age, 0)
  if (not report.queue_length and not is_unknown) or not report.age then
    return redis.error_reply("INVALID report")
  end
end

local time = now()
local expired = {}
local is_engine = of_polls and keeps_alive -- only the answers of engines keep a worker alive

local function apply(report)
  local name = report.name
  local load = read_load(name, decays and time)
  local ttl = redis.call("PTTL", key("heartbeat", name)) -- -2: there is no such key; -1: it does not expire
  if not load or ttl == -2 then
    expired[#expired + 1] = name
    return 0
  end
  local was_failing = load.failing
  if of_polls then
    clear_failure(load)
  else
    load.failing = nil
  end
  if keeps_alive then
    refresh_heartbeat(name, time, ttl ~= -1 and heartbeat_ttl or nil)
  end
  local fields = {}
  if report.queue_length then
    fields = apply_report(load, report.queue_length, time - report.age, in_flight_window, time, decays, is_engine)
  elseif is_engine and decays then -- no report will replace bookings without a lease, and no decay clock ends them
    local since_last = math.max(0, time - redis.call("HGET", load.worker, "heartbeat_at"))
    load.untracked = load.untracked * math.exp(-since_last / UNKNOWN_TIME)
    load.untracked_own_rate = load.untracked
  end
  if keeps_alive then
    fields[#fields + 1], fields[#fields + 2] = "heartbeat_at", time
  end
  if of_polls then
    fields[#fields + 1], fields[#fields + 2] = "polled", 1
  end
  write_load(load, unpack(fields))
  update_cost_index(load, decays)
  update_decay_index(load, decays and time)
  if was_failing and not load.failing then
    update_lottery(load)
    record_event("worker_recovered", "worker", name)
  end
  return 1
end

return run_once(request_id, reply_ttl, function()
  local results = handle_each(reports, apply)
  expire_leases(time, decays, 64)
  -- Last: a deletion before the heartbeats would make Redis accept them even if its memory is full.
  for _, name in ipairs(expired) do
    if spend(1) then
      break -- the sweep purges the others
    end
    spend(purge_worker(name))
  end
  return results
end)
