--[[
  Ends a lease, on its holder's word or because its time is over.

  If the worker's last report came after its request had ended, but before this, it is counted out already.
  The rule in Python: controller/domain/load.py, Load.release().

  Input:
    lease    the lease
    time     the time
    fades    whether bookings fade
    expired  whether its time is over and it was not released

  Output: whether the lease was out; false, too, if the worker has registered anew since, which ended it.
]]
--- @include "index_static"
--- @include "key"
--- @include "load_of"
--- @include "mark"
--- @include "write_load"
local function end_lease(lease, time, fades, expired)
  if redis.call("ZREM", key("leases"), lease) == 0 then
    return false
  end
  local booked_at, life, name = lease:match("^(%d+)%-[^@]*%-(%d+)@(.*)$")
  local known = redis.call("HMGET", key("worker", name), "life", "reported_at")
  if known[1] ~= life then
    return false
  end
  local load = load_of(name, fades and time)
  local reported_at = tonumber(known[2])
  if load.ended > 0 and tonumber(booked_at) < reported_at and (expired or time < reported_at + 1000) then
    load.ended = load.ended - 1
  end
  local marks
  local unseen_from = math.min(reported_at, tonumber(load.marks:sub(1, 13)) or reported_at)
  -- Or the next report would take it for one that is under way. (The clock may have been set back in between: then it
  -- was maybe counted as seen, and no number must get below 0.)
  if tonumber(booked_at) >= unseen_from and load.lent > 0 then
    load.lent, load.done = load.lent - 1, load.done + 1
    marks = load.marks:gsub("(%d+):(%d+):(%d+);", function(at, booked, lent)
      lent = at > booked_at and math.max(0, lent - 1) or tonumber(lent)
      return mark(at, booked, math.min(lent, load.lent))
    end)
  end
  load.leased = load.leased - 1
  load.ended = math.min(load.ended, load.leased)
  write_load(load, nil, marks)
  index_static(load, fades)
  return true
end
