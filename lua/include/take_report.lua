--[[
  Takes what a worker said of its queue, and learns from it. What was booked so shortly before that the worker cannot
  have known of it is added; if a later report has come first, nothing changes, unless that is from a time that is
  still to come: then the clock was set back.
  The rule in Python: controller/domain/load.py, Load.report().

  The hash field "own" counts the reported requests that we may have sent; other clients sent the rest. The field "work"
  sums up the request-milliseconds of these requests until some of them have ended.

  Input:
    load          as include/load_of.lua gives it
    queue_length  how many requests the worker had to run and to do
    written_at    when that was
    unseen_for    for how long a booking is under way to the worker
    time          the time
    fades         whether bookings fade

  Output: nothing; load has changed, its hash but for that and the indexes have not.
]]
--- @include "clock_of"
--- @include "learn"
--- @include "mark"
--- @include "phase"
local function take_report(load, queue_length, written_at, unseen_for, time, fades)
  local last = redis.call("HMGET", load.worker, "reported_at", "drawn", "own", "work")
  local last_at = tonumber(last[1])
  if written_at < last_at and last_at <= time then
    return
  end
  local booked, lent, marks = load.booked, load.lent, ""
  for at, booked_then, lent_then in load.marks:gmatch("(%d+):(%d+):(%d+);") do
    if tonumber(at) > written_at - unseen_for and tonumber(at) <= time then
      if marks == "" then
        booked, lent = booked_then, lent_then
      end
      marks = marks .. mark(at, booked_then - booked, math.max(0, lent_then - lent))
    end
  end
  local own_before = last[3] or 0
  local sent = own_before + booked + lent + load.done + (last[2] or 0)
  local own = math.min(queue_length, sent)
  local ended = sent - own
  local work = (last[4] or 0) + (own_before + own) / 2 * math.max(0, written_at - last_at)
  load.booked, load.lent, load.done = load.booked - booked, load.lent - lent, 0 -- those that it has not seen
  local seen_leases = load.leased - load.lent
  load.ended = math.max(0, seen_leases - queue_length)
  load.unleased = math.max(0, queue_length - seen_leases) + load.booked
  load.expected = load.unleased
  if fades then
    local _, _, phase_text = phase(clock_of(load.pools), time)
    load.phase = phase_text
  end
  load.marks = marks
  redis.call("HSET", load.worker,
    "reported", queue_length,
    "reported_at", written_at,
    "drawn", 0,
    "own", own,
    "work", ended > 0 and "0" or string.format("%.17g", work))
  local clock = clock_of(load.pools)
  if fades and not load.draining and clock then
    learn(clock, time, load.speed, work, ended)
  end
end
