--[[
  Return the names of the models of a worker that one of its pools is for.

  Input:
    pool    the name of the pool
    models  the names of all models of the worker
]]
local function models_of_pool(pool, models)
  local kind = pool:byte()
  if kind == 30 then
    return models
  end
  return { kind == 31 and pool:sub(2) or pool }
end
