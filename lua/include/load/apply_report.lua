--[[
  Apply a worker's report of its queue length to its load, and learn from it how long requests take.

  The worker may not have received the requests that were dispatched shortly before the report. They are in flight,
  and are added. A report changes nothing if a later report was applied already. An applied report from the future
  does not count: the clock of Redis was set back since. The reference model is Load.report() in tests/model/load.py.

  An engine may report its load at any moment of the in-flight window. Its leases at that moment were at least the
  fewest of the window, and at most the most. The other reported requests have no lease. So the estimate of the
  requests without a lease has a lower and an upper limit. In-flight requests raise the upper limit: the report may
  not include them. The estimate changes only if it is outside of these limits.

  The hash field `own` counts the reported requests that this cluster may have dispatched. Other clients sent the
  other reported requests. The field `work` sums up the request-milliseconds of `own` requests until some have
  finished.

  Input:
    load              as include/load/read_load.lua returns it
    queue_length      the number of requests that the worker is running or has waiting
    written_at        the time of the report
    in_flight_window  for how many milliseconds a request may be on its way to the worker
    time              the time
    decays            true if bookings decay
    is_engine         true if the worker is an engine. Its load does not decay, so nothing is learned from its report

  Output: further fields of the worker's hash, as arguments of HSET. The load is changed. The caller writes both and
  updates the indexes.
]]
--- @include "acknowledge"
--- @include "decay_clock"
--- @include "decay_clock_of"
--- @include "learn_decay"
--- @include "range_of_leases"
local function apply_report(load, queue_length, written_at, in_flight_window, time, decays, is_engine)
  local last = redis.call("HMGET", load.worker, "reported_at", "own", "work", "dispatched_by_lottery")
  local last_at, last_own, last_work, by_lottery = tonumber(last[1]), last[2], last[3], last[4]
  if written_at < last_at and last_at <= time then
    return {}
  end
  local in_flight_from = written_at - in_flight_window
  local acknowledged, acknowledged_leases = acknowledge(load, in_flight_from, time, is_engine)
  local sent = last_own + acknowledged + acknowledged_leases + load.released_since_report + by_lottery
  local own = math.min(queue_length, sent)
  local finished = sent - own
  local work = last_work + (last_own + own) / 2 * math.max(0, written_at - last_at)

  load.dispatched = load.dispatched - acknowledged
  load.leased_since_report = load.leased_since_report - acknowledged_leases
  load.released_since_report = 0
  local received_leases = load.leased - load.leased_since_report
  load.finished = math.max(0, received_leases - queue_length)
  local range = {}
  if is_engine then
    local least, most
    least, most, range = range_of_leases(load, in_flight_from, time)
    local highest = queue_length - least + load.dispatched
    load.untracked = math.max(0, queue_length - most, math.min(load.untracked, highest))
  else
    load.least, load.peak = load.leased, load.leased
    load.untracked = math.max(0, queue_length - received_leases) + load.dispatched
  end
  load.untracked_own_rate = load.untracked
  local clock = decay_clock_of(load.pools)
  if decays then
    load.decayed_at = decay_clock(clock, time)
  end
  if decays and not load.draining and clock and not is_engine then
    learn_decay(clock, time, load.speed, work, finished)
  end
  return {
    "reported", queue_length,
    "reported_at", written_at,
    "own", own,
    "work", finished > 0 and 0 or work,
    "dispatched_by_lottery", 0,
    unpack(range)
  }
end
