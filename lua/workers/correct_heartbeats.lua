--[[
  Correct the TTLs of heartbeats after the clock of Redis was set. Redis stores an expiration as a point in time. It
  comes too early if the clock is set ahead, and too late if it is set back.

  A heartbeat with too little time left gets the time that it should have. A heartbeat received since has more and keeps
  it. A heartbeat with more time left than possible gets the time that it should have, too. A repeated call sets the
  same TTL again, so a heartbeat lasts longer by the time between the two calls.

  Keys:
    workers           ZSET    w
    heartbeat:<name>  STRING  rw

  Input:
    KEYS[1]   {<namespace>}
    ARGV[1]   heartbeat_ttl: the expiration of heartbeats in milliseconds; none can have more time left
    ARGV[2…]  for each worker: name, expected
                name: the worker's name
                expected: the milliseconds that its heartbeat should have left

  Output:
    the number of heartbeats that were corrected
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "argument_groups"
--- @include "key"
--- @include "now"
--- @include "refresh_heartbeat"
--- @include "whole_number"
local heartbeat_ttl = whole_number(ARGV[1], 1)
local heartbeats = argument_groups(2, { "name", "expected" })
if not heartbeat_ttl or not heartbeats then
  return redis.error_reply("INVALID arguments")
end
for _, heartbeat in ipairs(heartbeats) do
  heartbeat.expected = whole_number(heartbeat.expected, 1)
  if not heartbeat.expected then
    return redis.error_reply("INVALID time")
  end
end

local time = now()
local corrected = 0
for _, heartbeat in ipairs(heartbeats) do
  local expected = math.min(heartbeat.expected, heartbeat_ttl)
  local ttl = redis.call("PTTL", key("heartbeat", heartbeat.name)) -- negative if it does not exist or does not expire
  if ttl > heartbeat_ttl or (ttl >= 0 and ttl < expected) then
    refresh_heartbeat(heartbeat.name, time, expected)
    corrected = corrected + 1
  end
end
return corrected
