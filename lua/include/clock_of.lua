--[[
  The name by which what is learned of a worker's requests is kept (include/learn.lua): its pool, or '\31' for all
  workers that are in the rest of their models, so that their bookings fade alike wherever they are indexed.

  Input:
    pools  the names of the worker's pools

  Output: that name; nil for a worker without models.
]]
local function clock_of(pools)
  local first = pools[1]
  return first and first:byte() == 31 and "\31" or first
end
