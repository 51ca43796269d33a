--[[
  Learns from a report for how long requests of a model are with a worker: a mean over some thousands of bookings. The
  model's phase goes on from where it is at another pace, so no index need be sorted anew. For a model that nothing
  is known of, the phase begins.
  The rule in Python: controller/domain/fade.py, Fade.learn().

  Input:
    model     the model's name
    time      the time
    speed     the worker's
    work      for how many request-milliseconds it has worked since its last report
    bookings  how many bookings that were

  No report tells of more than an hour, or less than 20 ms, for each booking: one that is wrong does not spoil it all.

  What is written: '<phase> <at which time> <time constant> <pace> <bookings> <work> <the same by speed>'.
]]
--- @include "key"
--- @include "phase"
local function learn(model, time, speed, work, bookings)
  local fade = redis.call("GET", key("fade", model)) or "0 0 10000 1 10 100000 100000"
  local all_bookings, all_work, by_speed = fade:match("^%S+ %S+ %S+ %S+ (%S+) (%S+) (%S+)$")
  local kept = math.exp(-math.min(bookings, 100000) / 2000)
  work = math.max(20 * bookings, math.min(work, 3600000 * (bookings + 1)))
  all_bookings = all_bookings * kept + bookings
  all_work = all_work * kept + work
  by_speed = by_speed * kept + work * speed
  local now_phase = phase(model, time)
  redis.call("SET", key("fade", model), string.format("%.17g %.0f %.17g %.17g %.17g %.17g %.17g",
    now_phase, time, math.min(3600000, math.max(20, all_work / all_bookings)), all_work / by_speed,
    all_bookings, all_work, by_speed))
  phases[model] = nil -- at another pace from now on
end
