--[[
  Add a worker's pools to those of its models, before the worker is put into their indexes.

  Input:
    load    as include/load/read_load.lua returns it
    models  the names of its models

  Output: an array of the models that had no worker.
]]
--- @include "decay_clock_of"
--- @include "key"
--- @include "models_of_pool"
--- @include "spend"
local function join_pools(load, models)
  local appeared = {}
  local joined, names, keys = {}, {}, {} -- the pools without workers, once for each of their models
  for _, pool in ipairs(load.pools) do
    if redis.call("EXISTS", key("cost_index", pool)) == 0 then
      for _, model in ipairs(models_of_pool(pool, models)) do
        joined[#joined + 1], names[#names + 1], keys[#keys + 1] = pool, model, key("pools", model)
      end
    end
  end
  if joined[1] then
    local found = redis.call("MGET", unpack(keys))
    for i, pool in ipairs(joined) do
      local written, model = found[i], names[i]
      if not written and pool ~= model then
        written = redis.call("EXISTS", key("cost_index", model)) == 1 and model .. "\n" or ""
      end
      if written and not ("\n" .. written):find("\n" .. pool .. "\n", 1, true) then
        redis.call("SET", keys[i], written .. pool .. "\n")
      end
      if not found[i] and (pool == model or written == "") then
        appeared[#appeared + 1] = model
      end
    end
    redis.call("SADD", key("models"), unpack(names))
    spend(2 * #joined)
  end
  if (decay_clock_of(load.pools) or ""):byte() == 31 then
    redis.call("SADD", key("overflow"), load.name)
  end
  return appeared
end
