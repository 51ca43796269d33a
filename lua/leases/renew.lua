--[[
  Renew leases for their full time, from now on.

  Keys:
    worker:<name>     HASH    r
    heartbeat:<name>  STRING  r
    leases            ZSET    rw
    token_leases      HASH    w

  Input:
    KEYS[1]   {<namespace>}
    ARGV[1…]  for each lease: lease

  Output:
    an array with one entry for each lease, in order:
      1  the lease is active and was renewed
      0  it was released, it has expired, or its worker is not alive or has registered again
]]
--- @include "argument_groups"
--- @include "constants"
--- @include "is_alive"
--- @include "key"
--- @include "now"
--- @include "parse_lease"
local leases = argument_groups(1, { "lease" })
local time = now()

local function renew(lease)
  local _, lease_ttl, incarnation, name = parse_lease(lease)
  local expires_at = redis.call("ZSCORE", key("leases"), lease)
  if not expires_at or tonumber(expires_at) <= time then
    return 0
  end
  if not is_alive(name) or redis.call("HGET", key("worker", name), "incarnation") ~= incarnation then
    return 0
  end
  redis.call("ZADD", key("leases"), time + lease_ttl, lease)
  return 1
end

local renewed = {}
for i, item in ipairs(leases) do
  renewed[i] = renew(item.lease)
end
redis.call("PEXPIRE", key("leases"), LEASES_TTL)
redis.call("PEXPIRE", key("token_leases"), LEASES_TTL)
return renewed
