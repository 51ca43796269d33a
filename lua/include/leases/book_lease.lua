--[[
  Book a request with a lease for a worker.

  Input:
    name       the worker's name
    lease_ttl  the milliseconds after which the lease expires
    seq        the sequence number of the dispatch
    time       the time
    decays     true if bookings decay

  Output: the lease.
]]
--- @include "book"
--- @include "grant_lease"
--- @include "read_load"
local function book_lease(name, lease_ttl, seq, time, decays)
  local load = read_load(name, decays and time)
  local lease = grant_lease(load, lease_ttl, seq, time)
  book(load, seq, time, decays, true)
  return lease
end
