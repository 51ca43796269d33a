--[[
  List events of the stream, oldest first.

  Keys:
    events  STREAM  r

  Input:
    KEYS[1]  {<namespace>}
    ARGV[1]  after: the id of an event, whose successors are listed; '0-0' lists the first events, '' the last events
    ARGV[2]  count: how many to list at most

  Output:
    an array:
      [1]  an array with two entries for each event, oldest first: its id, which begins with the time in milliseconds,
           and an array of names and values of its fields
      [2]  the id of the last event in the stream; '0-0' if there is none
      [3]  1 if the stream does not have the event `after` any more, so that others may be missing; otherwise 0. If
           Redis lost its last events, or its clock was set back, [2] is lower than `after`
      [4]  the error of Redis if it cannot read the stream, otherwise ''
    error 'INVALID …' if an argument is invalid
]]
--- @include "key"
--- @include "whole_number"
local after, count = ARGV[1], whole_number(ARGV[2], 1)
if not count or not (after == "" or after:match("^%d+%-%d+$")) then
  return redis.error_reply("INVALID arguments")
end

local events = key("events")
local newest_one = redis.pcall("XREVRANGE", events, "+", "-", "COUNT", 1)
if newest_one.err then -- for example, the user of Redis has no right to XREVRANGE
  return { {}, "0-0", 0, newest_one.err }
end
local last_id = newest_one[1] and newest_one[1][1] or "0-0"
local found, is_complete = {}, true
if after == "" then
  local newest = redis.call("XREVRANGE", events, "+", "-", "COUNT", count)
  for i = #newest, 1, -1 do
    found[#found + 1] = newest[i]
  end
else
  found = redis.call("XRANGE", events, after, "+", "COUNT", count + 1)
  is_complete = after == "0-0" or (found[1] and found[1][1] == after) or false
  if is_complete and after ~= "0-0" then
    table.remove(found, 1)
  end
end
local listed = {}
for i = 1, math.min(count, #found) do
  listed[2 * i - 1], listed[2 * i] = found[i][1], found[i][2]
end
return { listed, last_id, is_complete and 0 or 1, "" }
