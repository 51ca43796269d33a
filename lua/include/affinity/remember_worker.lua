--[[
  Remember a worker for all keys of an affinity, after include/affinity/prefer_remembered.lua has read them.

  A key remembers MAX_REMEMBERED workers at most, and then replaces the one that was added first. If a generation has
  more than half of `max_keys`, it replaces the one before it, and a new one begins. Redis frees the memory of the
  replaced one in another thread.

  Input:
    affinity  as include/affinity/prefer_remembered.lua leaves it
    name      the worker's name
]]
--- @include "key"
local function remember_worker(affinity, name)
  local MAX_REMEMBERED = 4
  local fields = {}
  for i, each in ipairs(affinity.keys) do
    local current = affinity.current[i]
    if not current or not ("\n" .. current .. "\n"):find("\n" .. name .. "\n", 1, true) then
      local names = { name }
      for other in (affinity.remembered[i] or ""):gmatch("[^\n]+") do
        if #names < MAX_REMEMBERED and other ~= name and not affinity.gone[other] then
          names[#names + 1] = other
        end
      end
      fields[#fields + 1], fields[#fields + 2] = each, table.concat(names, "\n")
    end
  end
  if not fields[1] then
    return
  end
  local generation = affinity.generation
  local current, older = key("affinity", generation), key("affinity", generation - 1)
  local added = redis.call("HSET", current, unpack(fields))
  local number = added > 0 and redis.call("HLEN", current) or 0
  if added > 0 and number == added then -- a new generation
    redis.call("PEXPIRE", current, 3 * affinity.ttl)
    -- Now, because Redis would free it in its main thread when the TTL ends.
    redis.call("UNLINK", key("affinity", generation - 2))
  end
  if number > affinity.max_keys / 2 then
    redis.call("UNLINK", older)
    redis.call("RENAME", current, older)
  end
end
