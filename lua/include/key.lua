--[[
  The name of a key of this namespace: '<namespace>:<kind>' or '<namespace>:<kind>:<rest>'.
  The same names are made in Python by controller/store/keys.py alone; a test holds the two equal.

  Input:
    KEYS[1]  '{<ns>}' the namespace, which is the hash tag of all its keys
    kind     'workers', 'models', 'leases', 'replicas', 'sequence', 'sweep', 'check', 'schema', 'epoch'; with a rest:
             'worker', 'heartbeat', 'removed', 'draining', 'model', 'fading', 'fade', 'lottery', 'lottery_failing',
             'odds', 'reply', 'duty', 'told'
    rest     a worker's name, a model's name or a request id; nil for a kind that has but one key
]]
local function key(kind, rest)
  return rest and KEYS[1] .. ":" .. kind .. ":" .. rest or KEYS[1] .. ":" .. kind
end
