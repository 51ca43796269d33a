--[[
  The name of a key of this namespace: '<namespace>:<kind>' or '<namespace>:<kind>:<rest>'.
  The same names are made in Python by controller/store/keys.py alone; a test holds the two equal.

  Input:
    KEYS[1]  '{<ns>}' the namespace, which is the hash tag of all its keys
    kind     'workers', 'models', 'leases', 'replicas', 'sequence', 'sweep', 'check', 'schema', 'epoch'; with a rest:
             'worker', 'heartbeat', 'removed', 'draining', 'model', 'fading', 'fade', 'lottery', 'reply'
    rest     a worker's name, a model's name or a request id; nil for a kind that has but one key
]]
local made = {} -- a batch asks for the same names again and again

local function key(kind, rest)
  if not rest then
    return KEYS[1] .. ":" .. kind
  end
  local of_kind = made[kind]
  if not of_kind then
    of_kind = {}
    made[kind] = of_kind
  end
  local name = of_kind[rest]
  if not name then
    name = KEYS[1] .. ":" .. kind .. ":" .. rest
    of_kind[rest] = name
  end
  return name
end
