--[[
  Writes down a new lease: '<time>-<its time in milliseconds>-<turn>-<life of the worker>@<name of the worker>'. No two
  are alike, for no two choices have the same turn.

  Input:
    load        the worker's, as include/load_of.lua gives it
    lease_time  after so many milliseconds it ends by itself
    turn        the number of the choice that it goes with
    time        the time

  Output: the lease.
]]
--- @include "key"
local function lend(load, lease_time, turn, time)
  local life = redis.call("HGET", load.worker, "life")
  local lease = string.format("%.0f-%.0f-%.0f-%s@%s", time, lease_time, turn, life, load.name)
  redis.call("ZADD", key("leases"), time + lease_time, lease)
  redis.call("PEXPIRE", key("leases"), 172800000) -- 2 days: longer than any lease
  return lease
end
