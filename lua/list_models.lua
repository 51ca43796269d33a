--[[
  The models that have a live worker, at one instant. For each model the walk ends at the first that fits.

  Input:
    KEYS[1]  '{<ns>}' the namespace
    ARGV[1]  '' for the models of all workers, '1' for those of multimodal ones, '0' for those of the others

  Output:
    an array of names, in no order
    error 'INVALID …' if the argument cannot be
]]
--- @include "alive"
--- @include "key"
--- @include "name_of"
local multimodal = ARGV[1]
if multimodal ~= "" and multimodal ~= "0" and multimodal ~= "1" then
  return redis.error_reply("INVALID kind of worker")
end

local STEP = 64

local function fits(name)
  return alive(name)
    and (multimodal == "" or redis.call("HGET", key("worker", name), "multimodal") == multimodal)
end

local function has_worker(model)
  local first = 0
  while true do
    local members = redis.call("ZRANGE", key("model", model), first, first + STEP - 1)
    for _, index_member in ipairs(members) do
      if fits(name_of(index_member)) then
        return true
      end
    end
    if #members < STEP then
      return false
    end
    first = first + STEP
  end
end

local models = {}
for _, model in ipairs(redis.call("SMEMBERS", key("models"))) do
  if has_worker(model) then
    models[#models + 1] = model
  end
end
return models
