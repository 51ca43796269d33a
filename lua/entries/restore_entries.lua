--[[
  Restore the entries of a list after Redis lost them. They replace what Redis has, unless that is as new.

  Keys:
    tokens   HASH  rw
    engines  HASH  rw
    routes   HASH  rw

  Input:
    KEYS[1]   {<namespace>}
    ARGV[1]   list: as in list_entries.lua
    ARGV[2]   version: the version of these entries, as in list_entries.lua
    ARGV[3]   change: their latest change
    ARGV[4…]  for each entry: name, record
                name: the name of the entry
                record: as in set_entry.lua

  Output:
    1  they were restored, or Redis has them
    0  the entries in Redis are others, of the same version or a later one; nothing was done
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "argument_groups"
--- @include "key_of_list"
--- @include "whole_number"
local list, version, change = key_of_list(ARGV[1]), whole_number(ARGV[2], 1), ARGV[3]
local restored = argument_groups(4, { "name", "record" })
if not list or not version or not change or not restored then
  return redis.error_reply("INVALID arguments")
end
for _, entry in ipairs(restored) do
  if entry.name == "" or entry.record == "" then
    return redis.error_reply("INVALID entry")
  end
end

local found = redis.call("HMGET", list, "version", "change")
local found_version = tonumber(found[1] or 0)
if found_version >= version then
  return found_version == version and found[2] == change and 1 or 0
end
redis.call("DEL", list)
redis.call("HSET", list, "version", version, "change", change)
for _, entry in ipairs(restored) do
  redis.call("HSET", list, "entry:" .. entry.name, entry.record)
end
return 1
