--[[
  Proves that the store runs scripts and takes what they write.

  Input:
    KEYS[1]  '{<ns>}' the namespace

  Output:
    1
]]
--- @include "key"
redis.call("SET", key("check"), "1", "PX", 1000)
return 1
