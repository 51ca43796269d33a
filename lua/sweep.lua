--[[
  Tidies away workers whose heartbeat has lapsed, and leases whose time is over. Of the workers, only memory and the
  length of walks depend on it: every other script judges liveness for itself.

  Many replicas call it; the first of an interval does the work, the others find it done.

  Input:
    KEYS[1]  '{<ns>}' the namespace
    ARGV[1]  the interval in milliseconds
    ARGV[2]  '1' if bookings fade, else '0'

  Output:
    an array:
      [1]  1 if there is more to do: call again; 0 if all is done, or another replica did it
      [2]  an array of the names of the removed workers
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "alive"
--- @include "end_overdue_leases"
--- @include "forget"
--- @include "key"
--- @include "now"
--- @include "spend"
--- @include "whole_number"
local LIMIT = 200 -- of each kind, in one call

local interval = whole_number(ARGV[1], 1)
local fades = ARGV[2] == "1"
if not interval then
  return redis.error_reply("INVALID arguments")
end

local left = redis.call("PTTL", key("sweep"))
if left >= 0 and left <= interval then -- more would be left only where the clock was set back
  return { 0, {} }
end

local time = now()
local removed = {}
local lapsed = redis.call("ZRANGEBYSCORE", key("workers"), "-inf", time, "LIMIT", 0, LIMIT)
for _, name in ipairs(lapsed) do
  if spend(0) then
    return { 1, removed }
  elseif alive(name) then -- the clock was set back and forth: look again when its key will be gone
    redis.call("ZADD", key("workers"), time + redis.call("PTTL", key("heartbeat", name)), name)
  else
    spend(forget(name))
    removed[#removed + 1] = name
  end
end
if end_overdue_leases(time, fades, LIMIT) or #lapsed == LIMIT then
  return { 1, removed }
end
-- Last, because a full store refuses it, but not what makes room.
redis.call("SET", key("sweep"), "1", "PX", interval)
return { 0, removed }
