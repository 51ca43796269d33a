--[[
  Prolongs leases: from now on each lasts as long as it was to last in the beginning.

  Input:
    KEYS[1]  '{<ns>}' the namespace
    ARGV[1…] the leases

  Output:
    an array with one entry a lease, in order:
      1  it is out, and prolonged
      0  it is not out any more, or its worker is not alive: see release.lua
]]
--- @include "alive"
--- @include "key"
--- @include "now"
local time = now()

local function renew(lease)
  local lease_time, life, name = lease:match("^%d+%-(%d+)%-%d+%-(%d+)@(.*)$")
  local ends_at = redis.call("ZSCORE", key("leases"), lease)
  if not ends_at or tonumber(ends_at) <= time then
    return 0
  end
  if not alive(name) or redis.call("HGET", key("worker", name), "life") ~= life then
    return 0
  end
  redis.call("ZADD", key("leases"), time + lease_time, lease)
  return 1
end

local renewed = {}
for i = 1, #ARGV do
  renewed[i] = renew(ARGV[i])
end
redis.call("PEXPIRE", key("leases"), 172800000)
return renewed
