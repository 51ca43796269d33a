--[[
  Return the parts of a lease, as text: the time at which it was granted, its milliseconds, the incarnation of its
  worker, the worker's name, and the token that it counts for, or ''. include/leases/grant_lease.lua writes it.

  Input:
    lease  the lease
]]
local function parse_lease(lease)
  local leased_at, lease_ttl, incarnation, token, name = lease:match("^(%d+)%-(%d+)%-%d+%-(%d+)%-?([^@]*)@(.*)$")
  return leased_at, lease_ttl, incarnation, name, token
end
