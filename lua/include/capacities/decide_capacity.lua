--[[
  Decide the capacity of a worker. The first of these that is known counts:
    1. the capacity that was set for the worker (set_capacity.lua)
    2. the capacity that the worker reports
    3. the smallest capacity that was set for one of its models
    4. the default from the settings of a replica
  The reference model is effective_capacity() in tests/model/capacity.py.

  Input:
    name      the worker's name
    models    the names of its models
    reported  the capacity that it reports, or nil
    default   the capacity for its models according to the settings, or nil

  Output: the capacity, nil if it is unknown; its source: 'reported', 'configured', or '' if it is unknown.
]]
--- @include "key"
--- @include "spend"
local function decide_capacity(name, models, reported, default)
  local fields = { "worker:" .. name }
  for i, model in ipairs(models) do
    fields[i + 1] = "model:" .. model:gsub("^\29", "") -- an engine's (controller/domain/engine.py)
  end
  spend(math.ceil(#fields / 8))
  local set = redis.call("HMGET", key("capacities"), unpack(fields))
  if set[1] then
    return tonumber(set[1]), "configured"
  elseif reported then
    return reported, "reported"
  end
  local smallest
  for i = 2, #fields do
    local capacity = tonumber(set[i] or "")
    if capacity and capacity < (smallest or math.huge) then
      smallest = capacity
    end
  end
  local capacity = smallest or default
  return capacity, capacity and "configured" or ""
end
