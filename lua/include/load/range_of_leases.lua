--[[
  Return the fewest and the most leases that an engine had at any moment of the in-flight window of a report.

  Two periods together contain the window. load.least and load.peak are of the current one, which began at `peak_since`.
  `least_before` and `peak_before` are of the one before. When the current period contains the whole window, a new one
  begins. These three are fields of the worker's hash.

  Input:
    load            as include/load/read_load.lua returns it; its least and its peak may change
    in_flight_from  the start of the in-flight window
    time            the time

  Output: the fewest; the most; the new values of these fields, as arguments of HSET.
]]
local function range_of_leases(load, in_flight_from, time)
  local fields = redis.call("HMGET", load.worker, "least_before", "peak_before", "peak_since")
  local least_before, peak_before = tonumber(fields[1]) or 0, tonumber(fields[2]) or 0
  local since, least, peak = tonumber(fields[3]) or 0, load.least, load.peak
  if in_flight_from >= since or since > time then -- or the clock of Redis was set back
    load.least, load.peak = load.leased, load.leased
    return least, peak, { "least_before", least, "peak_before", peak, "peak_since", time }
  end
  return math.min(least_before, least), math.max(peak_before, peak), {}
end
