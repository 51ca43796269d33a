--[[
  End leases that have expired, because their clients crashed or did not release them.

  Input:
    time    the time
    decays  true if bookings decay
    limit   the maximum number of leases

  Output: true if there may be more of them.
]]
--- @include "end_lease" when called
--- @include "key"
--- @include "spend"
local function expire_leases(time, decays, limit)
  local expired = redis.call("ZRANGEBYSCORE", key("leases"), "-inf", time, "LIMIT", 0, limit)
  for _, lease in ipairs(expired) do
    if spend(1) then
      return true
    end
    end_lease(lease, time, decays, true)
  end
  return #expired == limit
end
