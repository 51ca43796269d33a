--[[
  Restore the capacities that were set, after Redis lost them. They replace what Redis has, unless that is newer.

  The last call of a restoration writes the version. So if one fails, the next snapshot of any replica begins again.
  Replicas that restore the same version help each other. A restoration of an older version ends at once, unless the
  other has paused for more than MAX_PAUSE.

  Keys:
    capacities  HASH    rw

  Input:
    KEYS[1]   {<namespace>}
    ARGV[1]   version: the version of these capacities, as in list_capacities.lua
    ARGV[2]   is_first: '1' in the first call of a restoration, otherwise '0'
    ARGV[3]   is_last: '1' in the last call, otherwise '0'
    ARGV[4…]  for each capacity: target, capacity
                target: 'worker:<name>' or 'model:<name>'
                capacity: as in set_capacity.lua

  Output:
    1  they were restored
    0  the capacities in Redis, or in another restoration, have a later version; nothing was done
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "argument_groups"
--- @include "key"
--- @include "now"
--- @include "whole_number"
local MAX_PAUSE = 10000 -- milliseconds

local version, is_first, is_last = whole_number(ARGV[1], 1), ARGV[2] == "1", ARGV[3] == "1"
local restored = argument_groups(4, { "target", "capacity" })
if not version or not restored then
  return redis.error_reply("INVALID arguments")
end
for _, each in ipairs(restored) do
  if not each.target:match("^worker:.") and not each.target:match("^model:.") then
    return redis.error_reply("INVALID target")
  elseif not whole_number(each.capacity, 1) then
    return redis.error_reply("INVALID capacity")
  end
end

local time = now()
local capacities = key("capacities")
local fields = redis.call("HMGET", capacities, "version", "restoring", "restoring_at")
local found, restoring, restoring_at = tonumber(fields[1] or 0), tonumber(fields[2] or 0), tonumber(fields[3] or 0)
if time - restoring_at > MAX_PAUSE then
  restoring = 0
end
if found > version or restoring > version then
  return 0
elseif found < version and is_first and restoring < version then
  redis.call("DEL", capacities)
end
if found < version then
  redis.call("HSET", capacities, "restoring", version, "restoring_at", time)
end
for _, each in ipairs(restored) do
  redis.call("HSET", capacities, each.target, each.capacity)
end
if is_last then
  redis.call("HSET", capacities, "version", version)
  redis.call("HDEL", capacities, "restoring", "restoring_at")
end
return 1
