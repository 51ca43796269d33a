--[[
  Ends leases whose time is over: their clients have died, or forgotten them.

  Input:
    time    the time
    fades   whether bookings fade
    limit   how many at most

  Output: whether there may be more of them.
]]
--- @include "key"
--- @include "spend"
local function end_overdue_leases(time, fades, limit)
  local overdue = redis.call("ZRANGEBYSCORE", key("leases"), "-inf", time, "LIMIT", 0, limit)
  if overdue[1] then
    --- @include "end_lease"
    for _, lease in ipairs(overdue) do
      if spend(0) then
        return true
      end
      end_lease(lease, time, fades, true)
    end
  end
  return #overdue == limit
end
