--[[
  List the capacities that were set for workers and models. Each call lists some of them, so that it cannot block Redis
  for long. A capacity that is set during the whole listing is listed at least once, maybe twice.

  Keys:
    capacities  HASH    r

  Input:
    KEYS[1]  {<namespace>}
    ARGV[1]  cursor: '0' to begin, then the cursor that the previous call returned
    ARGV[2]  count: about how many to list

  Output:
    an array:
      [1]  the cursor for the next call; '0' if all were listed
      [2]  the version: it grows with each change
      [3]  an array: target and capacity of each, in arbitrary order; a target is 'worker:<name>' or 'model:<name>'
    error 'INVALID …' if an argument is invalid
]]
--- @include "key"
--- @include "whole_number"
local cursor, count = ARGV[1], whole_number(ARGV[2], 1)
if not cursor:match("^%d+$") or not count then
  return redis.error_reply("INVALID arguments")
end

local step = redis.call("HSCAN", key("capacities"), cursor, "COUNT", count)
local fields = step[2] -- each field is followed by its value
local listed = {}
for i = 1, #fields, 2 do
  if fields[i]:find(":", 1, true) then -- the others are about the version
    listed[#listed + 1] = fields[i]
    listed[#listed + 1] = tonumber(fields[i + 1])
  end
end
return { tostring(step[1]), tonumber(redis.call("HGET", key("capacities"), "version") or 0), listed }
