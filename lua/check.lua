--[[
  Proves that the store runs scripts and takes what they write, and that its keys are laid out as the caller expects.
  Where they are not, nothing is touched. Gives the store's memory a name, if it has none: whoever finds another one
  later knows that the store has lost it.

  Input:
    KEYS[1]  '{<ns>}' the namespace
    ARGV[1]  the version of the layout of keys that the caller works with
    ARGV[2]  a name that nobody else has

  Output:
    the version of the layout in this namespace: the caller's, if there was none
]]
--- @include "key"
local schema = redis.call("GET", key("schema"))
if schema and schema ~= ARGV[1] then
  return schema
end
redis.call("SET", key("check"), "1", "PX", 1000)
redis.call("SET", key("schema"), ARGV[1])
redis.call("SET", key("epoch"), ARGV[2], "NX")
return ARGV[1]
