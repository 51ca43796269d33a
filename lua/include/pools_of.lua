--[[
  The pools that have workers for a model. A pool has indexes of its own, and a worker is in the indexes of its pool
  only, so that the cost of a booking or a report does not grow with the number of its models.

  The name of a pool is that of the model, where its workers serve no other; '\30' and a digest, where they serve the
  same set of several models; or '\31' and the name of the model: the rest of its workers, which serve so many different
  sets that to look at each would take too long (include/assign_pools.lua). Names of models have no control characters.

  Input:
    model  the model's name

  Output: an array of names; the model alone, where nothing is written down.
]]
--- @include "key"
local function pools_of(model)
  local written = redis.call("GET", key("pools", model))
  if not written then
    return { model }
  end
  local pools = {}
  for pool in written:gmatch("[^\n]+") do
    pools[#pools + 1] = pool
  end
  return pools
end
