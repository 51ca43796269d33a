--[[
  Corrects the remaining time of heartbeats after the clock of the store was set. Redis stores an expiration as a point
  in time, so it comes too early when the clock jumps ahead, and too late when it is set back.

  A heartbeat with too little time left gets what it should have. One that was received since then has more, and keeps
  it. A heartbeat with more time left than any can have gets what it should have, too. Running twice changes nothing.

  Input:
    KEYS[1]  '{<ns>}' the namespace
    ARGV[1]  the expiration of heartbeats in milliseconds: none can have more left
    ARGV[2…] for each worker two: its name; the milliseconds that its heartbeat should have left

  Output:
    the number of heartbeats that were corrected
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "key"
--- @include "now"
--- @include "prolong"
--- @include "whole_number"
local expiration = whole_number(ARGV[1], 1)
if not expiration or #ARGV % 2 == 0 then
  return redis.error_reply("INVALID arguments")
end
for i = 3, #ARGV, 2 do
  if not whole_number(ARGV[i], 1) then
    return redis.error_reply("INVALID time")
  end
end

local time = now()
local corrected = 0
for i = 2, #ARGV, 2 do
  local name = ARGV[i]
  local expected = math.min(tonumber(ARGV[i + 1]), expiration)
  local left = redis.call("PTTL", key("heartbeat", name)) -- below 0: there is none, or it does not expire
  if left > expiration or (left >= 0 and left < expected) then
    prolong(name, time, expected)
    corrected = corrected + 1
  end
end
return corrected
