--[[
  List the entries of a list that all replicas keep a copy of, unless the caller knows them already.

  Keys:
    tokens   HASH  r
    engines  HASH  r
    routes   HASH  r

  Input:
    KEYS[1]  {<namespace>}
    ARGV[1]  list: 'tokens', 'engines' or 'routes'
    ARGV[2]  version: the version that the caller knows; 0 if it knows none
    ARGV[3]  change: the change that the caller knows

  Output:
    an array:
      [1]  the version: it grows with each change
      [2]  the change: the id of the call that made the latest one; '' if there was none
      [3]  an array: name and record of each entry, in arbitrary order; nil if the caller knows this version and change
    error 'INVALID …' if an argument is invalid
]]
--- @include "key_of_list"
local list, version, change = key_of_list(ARGV[1]), ARGV[2], ARGV[3]
if not list or not change then
  return redis.error_reply("INVALID arguments")
end
local found = redis.call("HMGET", list, "version", "change")
local found_version, found_change = found[1] or "0", found[2] or ""
if found_version == version and found_change == change then
  return { tonumber(found_version), found_change }
end

local fields = redis.call("HGETALL", list) -- set_entry.lua limits how many there are
local listed = {}
for i = 1, #fields, 2 do
  local name = fields[i]:match("^entry:(.*)$")
  if name then
    listed[#listed + 1] = name
    listed[#listed + 1] = fields[i + 1]
  end
end
return { tonumber(found_version), found_change, listed }
