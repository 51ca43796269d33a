--[[
  Release leases, because their requests have finished.

  Keys:
    worker:<name>       HASH    rw
    checkpoints:<name>  STRING  rw
    cost_index:<pool>   ZSET    rw
    cost_heads          HASH    w
    decay:<pool>        STRING  r
    leases              ZSET    rw
    token_leases        HASH    rw

  Input:
    KEYS[1]   {<namespace>}
    ARGV[1]   decays: '1' if bookings decay, otherwise '0'
    ARGV[2…]  for each lease: lease

  Output:
    an array with one entry for each lease, in order; if there are fewer, call again for the rest
      1  the lease was active and has ended
      0  it was not active: it was released, it has expired, or its worker is gone or has registered again
]]
--- @include "argument_groups"
--- @include "end_lease"
--- @include "handle_each"
--- @include "key"
--- @include "now"
local decays = ARGV[1] == "1"
local leases = argument_groups(2, { "lease" })
local time = now()

return handle_each(leases, function(item)
  local expires_at = tonumber(redis.call("ZSCORE", key("leases"), item.lease) or 0)
  return end_lease(item.lease, time, decays, false) and expires_at > time and 1 or 0
end)
