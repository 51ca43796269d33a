--[[
  Read which workers are remembered for the keys of an affinity.

  The keys are the fields of a hash. A new hash, a generation, begins every `ttl` milliseconds. Only the last two are
  read. So a key is remembered for at least `ttl` after its last use, and no key needs an expiry of its own.

  Input:
    affinity  as include/arguments/parse_affinity.lua returns it. This function adds:
                generation  the number of the current generation
                current     what that generation has of each key, as in the output
                remembered  the output
    time      the time

  Output: for each key, the names of its workers with line breaks between them, the latest first; false for none.
]]
--- @include "key"
--- @include "spend"
local function remembered_workers(affinity, time)
  local keys = affinity.keys
  local generation = math.floor(time / affinity.ttl)
  local current = redis.call("HMGET", key("affinity", generation), unpack(keys))
  local remembered, missing, numbers = {}, {}, {}
  for i, names in ipairs(current) do
    remembered[i] = names
    if not names then
      missing[#missing + 1], numbers[#numbers + 1] = keys[i], i
    end
  end
  if missing[1] then
    for i, names in ipairs(redis.call("HMGET", key("affinity", generation - 1), unpack(missing))) do
      remembered[numbers[i]] = names
    end
  end
  spend(#keys)
  affinity.generation, affinity.current, affinity.remembered = generation, current, remembered
  return remembered
end
