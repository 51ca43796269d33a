--[[
  Book a request with a lease for a worker.

  Input:
    name     the worker's name
    request  the request, as include/arguments/read_requests.lua returns it
    seq      the sequence number of the dispatch
    time     the time
    decays   true if bookings decay

  Output: the lease.
]]
--- @include "book"
--- @include "grant_lease"
--- @include "read_load"
local function book_lease(name, request, seq, time, decays)
  local load = read_load(name, decays and time)
  local lease = grant_lease(load, request, seq, time)
  book(load, seq, time, decays, true)
  return lease
end
