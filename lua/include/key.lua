--[[
  Return the name of a key: '<namespace>:<kind>' or '<namespace>:<kind>:<rest>'.

  All keys of a namespace share its hash tag, so they are in one slot of a Redis Cluster. In Python,
  controller/store/keys.py alone makes key names. A test holds the two equal.

  Input:
    kind  the kind of key: the name of a function in controller/store/keys.py
    rest  the worker, model, pool, job or request id that the key belongs to; nil for a kind with one key
]]
local function key(kind, rest)
  return rest and KEYS[1] .. ":" .. kind .. ":" .. rest or KEYS[1] .. ":" .. kind
end
