--[[
  Return the names of the pools that have workers for a model.

  A pool has indexes of its own. Except for overflow, a worker with models is in one pool only, so the cost of a booking
  or a report does not grow with the number of the worker's models. There are three kinds of pools:
    '<model>'      workers that serve only this model
    '\30<digest>'  workers that serve the same set of several models
    '\31<model>'   overflow: workers of the model whose set of models got no pool of its own, because a model of the
                   set had too many pools already (include/pools/assign_pools.lua)
  Names of models have no control characters.

  Input:
    model  the model's name

  Output: an array of names. It has the model alone if pools:<model> does not exist.
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
