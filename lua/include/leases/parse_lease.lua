--[[
  Return the parts of a lease, as text: the time at which it was granted, its milliseconds, the incarnation of its
  worker, and the worker's name. include/leases/grant_lease.lua writes it.

  Input:
    lease  the lease
]]
local function parse_lease(lease)
  return lease:match("^(%d+)%-(%d+)%-%d+%-(%d+)@(.*)$")
end
