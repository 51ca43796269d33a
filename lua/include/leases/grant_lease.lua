--[[
  Grant a lease: '<time>-<ttl in ms>-<sequence number>-<incarnation of the worker>@<name of the worker>'. Leases are
  unique, because each dispatch has a sequence number of its own.

  Input:
    load       the worker's load, as include/load/read_load.lua returns it
    lease_ttl  the milliseconds after which the lease expires
    seq        the sequence number of the dispatch
    time       the time

  Output: the lease.
]]
--- @include "constants"
--- @include "key"
local function grant_lease(load, lease_ttl, seq, time)
  local incarnation = redis.call("HGET", load.worker, "incarnation")
  local lease = string.format("%.0f-%.0f-%.0f-%s@%s", time, lease_ttl, seq, incarnation, load.name)
  redis.call("ZADD", key("leases"), time + lease_ttl, lease)
  redis.call("PEXPIRE", key("leases"), LEASES_TTL)
  return lease
end
