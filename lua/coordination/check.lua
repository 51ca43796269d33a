--[[
  Check that Redis runs scripts and accepts writes, and that its keys have the layout that the caller expects. Otherwise
  nothing is changed. If the data in Redis have no id yet, they get one. A different id later means that data were lost.

  Keys:
    events  STREAM  w
    check   STRING  w
    schema  STRING  rw
    epoch   STRING  w

  Input:
    KEYS[1]  {<namespace>}
    ARGV[1]  schema: the version of the key layout that the caller works with
    ARGV[2]  epoch: a new random id for the data

  Output:
    the version of the key layout in this namespace: the caller's, if there was none
]]
--- @include "key"
--- @include "record_event" when called
local schema, epoch = ARGV[1], ARGV[2]
local found = redis.call("GET", key("schema"))
if found and found ~= schema then
  return found
end
redis.call("SET", key("check"), "1", "PX", 1000)
redis.call("SET", key("schema"), schema)
if redis.call("SET", key("epoch"), epoch, "NX") then
  record_event("store_created", "epoch", epoch)
end
return schema
