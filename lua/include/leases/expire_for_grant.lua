--[[
  End leases that have expired before another one is granted. Each grant ends two others, and the first one of a call
  more. So leases that no client releases do not accumulate, and no request waits for all of them. If the budget of the
  call is spent, it ends only one other.

  Input:
    time    the time
    decays  true if bookings decay
    grants  how many leases the call may grant

  Output: true if a lease was ended. What the caller has read of the loads of workers may be out of date then.
]]
--- @include "end_lease" when called
--- @include "key"
--- @include "spend"
local expired
local position = 0

local function expire_for_grant(time, decays, grants)
  local AT_FIRST, FOR_EACH = 16, 2
  local number = FOR_EACH
  if not expired then
    number = AT_FIRST
    local limit = AT_FIRST + FOR_EACH * grants
    expired = redis.call("ZRANGEBYSCORE", key("leases"), "-inf", time, "LIMIT", 0, limit)
  end
  local first, last = position, math.min(position + number, #expired)
  while position < last do
    position = position + 1
    end_lease(expired[position], time, decays, true)
    if spend(1) then
      break
    end
  end
  return position > first
end
