--[[
  Return the name of the decay clock of a worker.

  Each pool has a decay clock of its own. All workers in overflow pools share one, '\31', so that their untracked load
  decays alike in each of their indexes.

  The decay clock of engines never starts, so their untracked load does not decay. It is what an engine reports beside
  the leases: requests of other clients, which have no reason to end before the next report. The names of engines'
  models begin with '\29' (controller/domain/engine.py), so no pool has engines and other workers. Engines in overflow
  pools have the name '\31\29'.

  Input:
    pools  the names of the worker's pools

  Output: the name; nil for a worker without models.
]]
local function decay_clock_of(pools)
  local first = pools[1]
  if not first or first:byte() ~= 31 then
    return first
  end
  return first:byte(2) == 29 and "\31\29" or "\31"
end
