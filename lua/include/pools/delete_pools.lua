--[[
  Delete empty pools from the pools of their models. Models without pools are deleted.

  Input:
    pools   the names of the pools
    models  for each of them, the name of the model whose pool it is. No model occurs twice

  Output: an array of the models that were deleted.
]]
--- @include "key"
local function delete_pools(pools, models)
  local keys = {}
  for i, model in ipairs(models) do
    keys[i] = key("pools", model)
  end
  local found, deleted_keys, deleted_models = redis.call("MGET", unpack(keys)), {}, {}
  for i, pool in ipairs(pools) do
    local written = found[i] or models[i] .. "\n"
    local first, last = ("\n" .. written):find("\n" .. pool .. "\n", 1, true)
    local left = first and written:sub(1, first - 1) .. written:sub(last)
    if left == "" then
      deleted_keys[#deleted_keys + 1], deleted_models[#deleted_models + 1] = keys[i], models[i]
    elseif left then -- otherwise the worker was draining, and in no index
      redis.call("SET", keys[i], left)
    end
  end
  if deleted_keys[1] then
    redis.call("DEL", unpack(deleted_keys))
  end
  local vanished = {}
  for _, model in ipairs(deleted_models) do
    if redis.call("SREM", key("models"), model) == 1 then -- a draining worker had left the model before
      vanished[#vanished + 1] = model
    end
  end
  return vanished
end
