--[[
  Ends leases whose time is over: their clients have died, or forgotten them.

  Input:
    time    the time
    fades   whether bookings fade
    budget  how many at most
]]
--- @include "end_lease"
--- @include "key"
local function end_overdue_leases(time, fades, budget)
  for _, lease in ipairs(redis.call("ZRANGEBYSCORE", key("leases"), "-inf", time, "LIMIT", 0, budget)) do
    end_lease(lease, time, fades)
  end
end
