--[[
  Return true if a token may get one more lease.

  Input:
    token  the name of the token
    limit  how many of its leases may be active
]]
--- @include "key"
local function may_lease(token, limit)
  return tonumber(redis.call("HGET", key("token_leases"), token) or 0) < limit
end
