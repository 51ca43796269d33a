--[[
  Return true if fewer than `max_workers` workers are alive, so that another one may register.

  Input:
    max_workers  how many workers may be alive; 0 for any number
    time         the time
]]
--- @include "key"
local function has_room(max_workers, time)
  -- Expired workers that are not purged yet do not count. Most calls need not look for them.
  return max_workers == 0 or redis.call("ZCARD", key("workers")) < max_workers
    or redis.call("ZCOUNT", key("workers"), "(" .. time, "+inf") < max_workers
end
