--[[
  Update a pool's time constant, the mean time of a request with a worker, from a report. Then start the pool's decay
  clock, or continue it at the new rate. The reading of the clock does not jump, so no index needs to be sorted again.
  The reference model is DecayClock.learn() in tests/model/decay.py.

  Requests are observed in blocks of at least 20. A complete block is added to the earlier ones, whose weight then
  drops: it is 1/e after 1,000 requests. If the mean times of two blocks in a row differ from the time constant by more
  than a factor of 3, both in the same direction, the second block replaces all earlier ones.

  Input:
    clock     as include/decay/decay_clock_of.lua returns it
    time      the time
    speed     the worker's speed
    work      the request-milliseconds that the worker has worked, as include/load/apply_report.lua counts them
    finished  how many requests have finished; 0 to start the clock only

  The work of one request counts as 20 ms at least and as an hour at most.

  Written to decay:<pool>: '<reading> <read at> <time constant> <rate> <requests> <work> <work times speed>', followed
  by the incomplete block '<requests> <work> <work times speed>' and by '<contradiction>': 1 if the last block was
  slower than the time constant by more than the factor of 3, -1 if it was faster by more than that, otherwise 0.
]]
--- @include "decay_clock"
--- @include "key"
local function learn_decay(clock, time, speed, work, finished)
  local known = readings[clock]
  local written = known and known[4] or redis.call("GET", key("decay", clock)) or "0 0 10000 1 10 100000 100000 0 0 0 0"
  local learned = written:match("^%S+ %S+ (.*)$")
  if finished > 0 then
    local constant, rate, all, all_work, all_times_speed, block = learned:match("^(%S+) (%S+) (%S+) (%S+) (%S+) ?(.*)$")
    local in_block, block_work, block_times_speed, contradiction = block:match("^(%S+) (%S+) (%S+) (%S+)$")
    work = math.max(20 * finished, math.min(work, 3600000 * finished))
    in_block = in_block + finished
    block_work = block_work + work
    block_times_speed = block_times_speed + work * speed
    contradiction = tonumber(contradiction)
    if in_block >= 20 then
      local ratio = block_work / in_block / constant
      local now_contradicts = ratio > 3 and 1 or ratio < 1 / 3 and -1 or 0
      local is_confirmed = now_contradicts ~= 0 and now_contradicts == contradiction
      local kept = is_confirmed and 0 or math.exp(-math.min(in_block, 100000) / 1000)
      contradiction = is_confirmed and 0 or now_contradicts
      all = all * kept + in_block
      all_work = all_work * kept + block_work
      all_times_speed = all_times_speed * kept + block_times_speed
      constant = string.format("%.17g", math.min(3600000, math.max(20, all_work / all)))
      rate = string.format("%.17g", all_work / all_times_speed)
      in_block, block_work, block_times_speed = 0, 0, 0
    end
    learned = string.format("%s %s %.17g %.17g %.17g %.17g %.17g %.17g %d", constant, rate, all, all_work,
      all_times_speed, in_block, block_work, block_times_speed, contradiction)
  end
  local reading = decay_clock(clock, time) % 4e9 -- scores stay below those of failing workers
  redis.call("SET", key("decay", clock), string.format("%.17g %.0f ", reading, time) .. learned)
  readings[clock] = nil
end
