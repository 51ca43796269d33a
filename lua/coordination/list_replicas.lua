--[[
  List the live replicas with their descriptions.

  Keys:
    replicas              ZSET  r
    replica_descriptions  HASH  r

  Input:
    KEYS[1]  {<namespace>}

  Output:
    an array with two entries for each live replica: its id, and its description, which it passed to
    join_replicas.lua; '' if its version sends none
]]
--- @include "key"
--- @include "now"
local listed = {}
for i, id in ipairs(redis.call("ZRANGEBYSCORE", key("replicas"), "(" .. now(), "+inf")) do
  listed[2 * i - 1], listed[2 * i] = id, redis.call("HGET", key("replica_descriptions"), id) or ""
end
return listed
