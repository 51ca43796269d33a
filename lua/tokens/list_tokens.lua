--[[
  List the tokens, unless the caller knows them already.

  Keys:
    tokens  HASH    r

  Input:
    KEYS[1]  {<namespace>}
    ARGV[1]  version: the version that the caller knows; 0 if it knows none
    ARGV[2]  change: the change that the caller knows

  Output:
    an array:
      [1]  the version: it grows with each change
      [2]  the change: the id of the call that made the latest one; '' if there was none
      [3]  an array: name and record of each token, in no order; nil if the caller knows this version and change
]]
--- @include "key"
local version, change = ARGV[1], ARGV[2]
local found = redis.call("HMGET", key("tokens"), "version", "change")
local found_version, found_change = found[1] or "0", found[2] or ""
if found_version == version and found_change == change then
  return { tonumber(found_version), found_change }
end

local fields = redis.call("HGETALL", key("tokens")) -- set_token.lua limits how many there are
local listed = {}
for i = 1, #fields, 2 do
  local name = fields[i]:match("^token:(.*)$")
  if name then
    listed[#listed + 1] = name
    listed[#listed + 1] = fields[i + 1]
  end
end
return { tonumber(found_version), found_change, listed }
