--[[
  Ends leases: their requests have ended.

  Input:
    KEYS[1]   '{<ns>}' the namespace
    ARGV[1]   '1' if bookings fade, else '0'
    ARGV[2…]  for each one the lease

  Output:
    an array with one entry a lease, in order; there may be fewer: then call again for the rest
      1  it was out, and has ended
      0  it was not: released before, its time over, or its worker gone or registered anew
]]
--- @include "end_lease"
--- @include "key"
--- @include "now"
--- @include "spend"
local fades = ARGV[1] == "1"
local time = now()
local released = {}
for i = 2, #ARGV do
  local ends_at = tonumber(redis.call("ZSCORE", key("leases"), ARGV[i]) or 0)
  released[i - 1] = end_lease(ARGV[i], time, fades) and ends_at > time and 1 or 0
  if spend(0) then
    break
  end
end
return released
