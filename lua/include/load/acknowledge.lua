--[[
  Find the requests that a worker had received when it wrote a report. Drop their checkpoints, which
  include/load/add_checkpoint.lua describes.

  Where the start of the in-flight window is between two checkpoints, the requests in between count as received. Those
  with a lease at an engine count as in flight instead, because its older checkpoints are far apart.

  Input:
    load            as include/load/read_load.lua returns it
    in_flight_from  the start of the in-flight window
    time            the time
    is_engine       true if the worker is an engine

  Output: how many requests it has received since the last report, without a lease; the same with one.
]]
--- @include "constants"
--- @include "key"
--- @include "map_checkpoints"
local function acknowledge(load, in_flight_from, time, is_engine)
  local checkpoints = redis.call("GET", key("checkpoints", load.name))
  if not checkpoints then
    return load.dispatched, load.leased_since_report
  end
  local last_at, leased_at_last = nil, 0 -- the last checkpoint before the window
  local dispatched_at_first, leased_at_first -- the first one in it
  for at, dispatched, leased in checkpoints:gmatch("(%d+):(%d+):(%d+);") do
    at = tonumber(at)
    if at <= in_flight_from then
      last_at, leased_at_last = at, tonumber(leased)
    elseif at <= time and not leased_at_first then -- otherwise the clock of Redis was set back
      dispatched_at_first, leased_at_first = tonumber(dispatched), tonumber(leased)
    end
  end
  local acknowledged = dispatched_at_first or load.dispatched
  local acknowledged_leases = leased_at_first or load.leased_since_report
  local kept
  if is_engine and (leased_at_first or (last_at and last_at + CHECKPOINT_MS > in_flight_from)) then
    acknowledged_leases = leased_at_last
    kept = acknowledged_leases < load.leased_since_report and last_at
  end
  map_checkpoints(load.name, function(at, dispatched, leased)
    if (at > in_flight_from or at == kept) and at <= time then
      return math.max(0, dispatched - acknowledged), math.max(0, leased - acknowledged_leases)
    end
  end)
  return acknowledged, acknowledged_leases
end
