--[[
  Proves that the store runs scripts and takes what they write, and that its keys are laid out as the caller expects.

  Input:
    KEYS[1]  '{<ns>}' the namespace
    ARGV[1]  the version of the layout of keys that the caller works with

  Output:
    the version of the layout in this namespace: the caller's, if there was none
]]
--- @include "key"
redis.call("SET", key("check"), "1", "PX", 1000)
redis.call("SET", key("schema"), ARGV[1], "NX")
return redis.call("GET", key("schema"))
