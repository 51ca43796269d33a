--[[
  Return the name of the decay clock of a worker.

  Each pool has a decay clock of its own. All workers in overflow pools share one, '\31', so that their untracked load
  decays alike in each of their indexes.

  Input:
    pools  the names of the worker's pools

  Output: the name; nil for a worker without models.
]]
local function decay_clock_of(pools)
  local first = pools[1]
  return first and first:byte() == 31 and "\31" or first
end
