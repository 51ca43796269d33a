--[[
  Ends leases whose time is over: their clients have died, or forgotten them.

  Input:
    time    the time
    fades   whether bookings fade
    budget  how many at most
]]
--- @include "key"
local function end_overdue_leases(time, fades, budget)
  local overdue = redis.call("ZRANGEBYSCORE", key("leases"), "-inf", time, "LIMIT", 0, budget)
  if overdue[1] then
    --- @include "end_lease"
    for _, lease in ipairs(overdue) do
      end_lease(lease, time, fades, true)
    end
  end
end
