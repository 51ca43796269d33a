--[[
  The name of a key of this namespace: '<namespace>:<kind>' or '<namespace>:<kind>:<rest>'.
  The same names are made in Python by controller/store/keys.py alone; a test holds the two equal.

  Input:
    KEYS[1]  '{<ns>}' the namespace, which is the hash tag of all its keys
    kind     'workers', 'models', 'leases', 'replicas', 'sequence', 'sweep', 'check', 'schema', 'epoch', 'rest',
             'fronts_model', 'fronts_fading'; with a rest: 'worker', 'heartbeat', 'removed', 'draining', 'pools',
             'model', 'fading', 'fade', 'lottery', 'lottery_failing', 'odds', 'reply', 'duty', 'told'
    rest     the name of a worker, a model or a pool, or a request id; nil for a kind that has but one key
]]
local function key(kind, rest)
  return rest and KEYS[1] .. ":" .. kind .. ":" .. rest or KEYS[1] .. ":" .. kind
end
