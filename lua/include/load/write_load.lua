--[[
  Write all parts of a worker's load that can change between two registrations. Bookings and releases write only
  what they change: include/load/book.lua and include/leases/end_lease.lua.

  A dispatch reads the first fields, and Redis finds the first fields of a small hash fastest.

  Input:
    load  as include/load/read_load.lua returns it
    ...   further fields of the worker's hash, as arguments of HSET
]]
--- @include "is_extended"
--- @include "lease_counts"
local function write_load(load, ...)
  redis.call("HSET", load.worker,
    "untracked", load.untracked,
    "untracked_own_rate", load.capacity and load.untracked_own_rate or "",
    "decayed_at", load.decayed_at,
    "seq", load.seq,
    "index_seq", load.index_seq,
    "dispatched", load.dispatched,
    "checkpoint_at", load.checkpoint_at,
    "leases", lease_counts(load),
    "extended", is_extended(load) and "1" or "0",
    "failing", load.failing or "",
    "draining", load.draining or "0",
    ...)
end
