--[[
  Return the most leases that an engine had at any moment of the in-flight window of a report.

  load.peak is the peak since `peak_since`, and `peak_before` is the peak of a time before that. Both times together
  contain the window. When the first one alone does, it becomes the earlier one, and another begins. Both are fields of
  the hash.

  Input:
    load            as include/load/read_load.lua returns it; its peak may change
    in_flight_from  the start of the in-flight window
    time            the time

  Output: the peak; the new values of `peak_before` and `peak_since`.
]]
local function peak_of_leases(load, in_flight_from, time)
  local fields = redis.call("HMGET", load.worker, "peak_before", "peak_since")
  local before, since, peak = tonumber(fields[1]) or 0, tonumber(fields[2]) or 0, load.peak
  if in_flight_from >= since or since > time then -- or the clock of Redis was set back
    load.peak = load.leased
    return peak, peak, time
  end
  return math.max(before, peak), before, since
end
