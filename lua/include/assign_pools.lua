--[[
  Decides which pools a worker is in: see include/pools_of.lua. A dispatch looks at each pool of a model, so a model has
  no more than MAX_SETS pools for sets of several models. Workers that come with a further set are indexed for each of
  their models instead, which costs more for each booking, but not for each dispatch.

  Input:
    models  the names of its models
    digest  of the set of these models; '' where there are fewer than two

  Output: what is written into the field "pool" of its hash: '' for the pool of its only model, the pool of its set, or
  '\31' for the rest of each of its models.
]]
--- @include "key"
local function assign_pools(models, digest)
  local MAX_SETS = 24
  if digest == "" then
    return ""
  end
  local pool = "\30" .. digest
  if redis.call("EXISTS", key("model", pool)) == 1 then
    return pool
  end
  for _, model in ipairs(models) do
    local written = redis.call("GET", key("pools", model)) or ""
    local _, sets = written:gsub("\30", "")
    if sets >= MAX_SETS then
      return "\31"
    end
  end
  return pool
end
