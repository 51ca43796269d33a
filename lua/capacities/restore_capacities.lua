--[[
  Restore the capacities that were set, after Redis lost them. They replace what Redis has, unless that is newer.

  Keys:
    capacities  HASH    rw

  Input:
    KEYS[1]   {<namespace>}
    ARGV[1]   version: the version of these capacities, as in list_capacities.lua
    ARGV[2…]  for each capacity: target, capacity
                target: 'worker:<name>' or 'model:<name>'
                capacity: as in set_capacity.lua

  Output:
    1  they were restored; call again with the same version if there are more of them
    0  the capacities in Redis have a later version; nothing was done
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "argument_groups"
--- @include "key"
--- @include "whole_number"
local version, restored = whole_number(ARGV[1], 1), argument_groups(2, { "target", "capacity" })
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

local capacities = key("capacities")
local found = tonumber(redis.call("HGET", capacities, "version") or 0)
if found > version then
  return 0
elseif found < version then
  redis.call("DEL", capacities)
end
redis.call("HSET", capacities, "version", version)
for _, each in ipairs(restored) do
  redis.call("HSET", capacities, each.target, each.capacity)
end
return 1
