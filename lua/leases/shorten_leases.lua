--[[
  Limit each lease to its own duration from now. After the clock of Redis was set back, it would last too long. Each
  call looks at some leases, so that it cannot block Redis for long.

  Keys:
    leases  ZSET    rw

  Input:
    KEYS[1]  {<namespace>}
    ARGV[1]  cursor: '0' to begin, then the cursor that the previous call returned
    ARGV[2]  count: about how many leases to look at

  Output:
    the cursor for the next call; '0' if all leases were looked at
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "key"
--- @include "now"
--- @include "parse_lease"
--- @include "whole_number"
local cursor, count = ARGV[1], whole_number(ARGV[2], 1)
if not cursor:match("^%d+$") or not count then
  return redis.error_reply("INVALID arguments")
end

local time = now()
local step = redis.call("ZSCAN", key("leases"), cursor, "COUNT", count)
local entries = step[2] -- each lease is followed by the time at which it expires
for i = 1, #entries, 2 do
  local lease, expires_at = entries[i], tonumber(entries[i + 1])
  local _, lease_ttl = parse_lease(lease)
  local latest = time + lease_ttl
  if expires_at > latest then
    redis.call("ZADD", key("leases"), latest, lease)
  end
end
return tostring(step[1])
