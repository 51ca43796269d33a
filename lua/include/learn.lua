--[[
  Learns from a report how long requests of a pool are with a worker. The pool's phase goes on from where it is at
  another pace, so that no index needs to be sorted again. For a new pool, the phase begins.
  The rule in Python: controller/domain/fade.py, Fade.learn().

  Requests are observed in blocks of 20. A block is added to what was learned before, which then counts for less: for
  1/e after 1,000 requests. If two blocks in a row differ from the time constant by more than a factor of 3, both in the
  same direction, the second one replaces what was learned before.

  Input:
    clock  as include/clock_of.lua gives it
    time   the time
    speed  the worker's
    work   for how many request-milliseconds it has worked, as include/take_report.lua counts them
    ended  how many requests have ended; 0 teaches nothing

  One request counts as an hour at most and as 20 ms at least.

  What is written: '<phase> <at which time> <time constant> <pace> <requests> <work> <the same by speed>', then for the
  block that is not complete '<requests> <work> <the same by speed>', and '<contradiction>': 1 if the times of the last
  block were too long for the constant, -1 if they were too short, else 0.
]]
--- @include "key"
--- @include "phase"
local function learn(clock, time, speed, work, ended)
  local fade = redis.call("GET", key("fade", clock)) or "0 0 10000 1 10 100000 100000 0 0 0 0"
  local learned = fade:match("^%S+ %S+ (.*)$")
  if ended > 0 then
    local constant, pace, all, all_work, all_by_speed, block = learned:match("^(%S+) (%S+) (%S+) (%S+) (%S+) ?(.*)$")
    local in_block, block_work, block_by_speed, contradiction = block:match("^(%S+) (%S+) (%S+) (%S+)$")
    work = math.max(20 * ended, math.min(work, 3600000 * ended))
    in_block = (in_block or 0) + ended
    block_work = (block_work or 0) + work
    block_by_speed = (block_by_speed or 0) + work * speed
    contradiction = tonumber(contradiction or 0)
    if in_block >= 20 then
      local ratio = block_work / in_block / constant
      local now_contradicts = ratio > 3 and 1 or ratio < 1 / 3 and -1 or 0
      local is_confirmed = now_contradicts ~= 0 and now_contradicts == contradiction
      local kept = is_confirmed and 0 or math.exp(-math.min(in_block, 100000) / 1000)
      contradiction = is_confirmed and 0 or now_contradicts
      all = all * kept + in_block
      all_work = all_work * kept + block_work
      all_by_speed = all_by_speed * kept + block_by_speed
      constant = string.format("%.17g", math.min(3600000, math.max(20, all_work / all)))
      pace = string.format("%.17g", all_work / all_by_speed)
      in_block, block_work, block_by_speed = 0, 0, 0
    end
    learned = string.format("%s %s %.17g %.17g %.17g %.17g %.17g %.17g %d", constant, pace, all, all_work,
      all_by_speed, in_block, block_work, block_by_speed, contradiction)
  end
  local now_phase = phase(clock, time) % 4e9 -- or include/index_fading.lua would reach the failing workers
  redis.call("SET", key("fade", clock), string.format("%.17g %.0f ", now_phase, time) .. learned)
  phases[clock] = nil -- at another pace from now on
end
