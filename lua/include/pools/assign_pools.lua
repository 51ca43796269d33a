--[[
  Return the names of the pools that a worker belongs to, see include/pools/pools_of.lua.

  A dispatch looks at each pool of a model, so a model has at most MAX_SETS pools of several models. Workers with a
  further set are in the overflow pool of each of their models. That makes their bookings slower, but no dispatch.

  Input:
    models  the names of the worker's models
    digest  the digest of the set of these models; '' if there are fewer than two
]]
--- @include "key"
local function assign_pools(models, digest)
  local MAX_SETS = 24
  if digest == "" then
    return models
  end
  local pool = "\30" .. digest
  if redis.call("EXISTS", key("cost_index", pool)) == 1 then
    return { pool }
  end
  local keys = {}
  for i, model in ipairs(models) do
    keys[i] = key("pools", model)
  end
  for _, written in ipairs(redis.call("MGET", unpack(keys))) do
    local _, sets = (written or ""):gsub("\30", "")
    if sets >= MAX_SETS then
      local overflow = {}
      for i, each in ipairs(models) do
        overflow[i] = "\31" .. each
      end
      return overflow
    end
  end
  return { pool }
end
