--[[
  Shortens leases that would last longer than they can, after the clock of the store was set back: each ends no later
  than its own duration from now. Some at a time, so that no call holds up dispatches for long.

  Input:
    KEYS[1]  '{<ns>}' the namespace
    ARGV[1]  '0' to begin; then the cursor that the call before returned
    ARGV[2]  about how many leases are looked at

  Output:
    the cursor for the next call; '0' when all leases were looked at
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "key"
--- @include "now"
--- @include "whole_number"
local cursor, count = ARGV[1], whole_number(ARGV[2], 1)
if not cursor:match("^%d+$") or not count then
  return redis.error_reply("INVALID arguments")
end

local time = now()
local step = redis.call("ZSCAN", key("leases"), cursor, "COUNT", count)
local entries = step[2] -- each lease is followed by the time at which it ends
for i = 1, #entries, 2 do
  local lease = entries[i]
  local latest = time + tonumber(lease:match("^%d+%-(%d+)%-")) -- as include/lend.lua writes it
  if tonumber(entries[i + 1]) > latest then
    redis.call("ZADD", key("leases"), latest, lease)
  end
end
return tostring(step[1])
