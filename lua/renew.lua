--[[
  Prolongs a lease: from now on it lasts as long as it was to last in the beginning.

  Input:
    KEYS[1]  '{<ns>}' the namespace
    ARGV[1]  the lease

  Output:
    1  it is out, and prolonged
    0  it is not out any more, or its worker is not alive: see release.lua
]]
--- @include "alive"
--- @include "key"
--- @include "now"
local lease = ARGV[1]
local lease_time, life, name = lease:match("^%d+%-(%d+)%-%d+%-(%d+)@(.*)$")
local ends_at = redis.call("ZSCORE", key("leases"), lease)
local time = now()
if not ends_at or tonumber(ends_at) <= time then
  return 0
end
if not alive(name) or redis.call("HGET", key("worker", name), "life") ~= life then
  return 0
end
redis.call("ZADD", key("leases"), time + lease_time, lease)
redis.call("PEXPIRE", key("leases"), 172800000)
return 1
