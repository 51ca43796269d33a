--[[
  Return why a request gets no lease, 'refused' or 'token_refused', as the dispatch scripts do; nil if it may have
  one. Leases that have expired are ended first (include/leases/expire_for_grant.lua).

  Input:
    request  the request, as include/arguments/read_requests.lua returns it
    limit    how many leases may be active; 0 for any number
    time     the time
    decays   true if bookings decay
    grants   how many leases the call may grant
]]
--- @include "expire_for_grant"
--- @include "key"
local function lease_refusal(request, limit, time, decays, grants)
  expire_for_grant(time, decays, grants)
  if limit > 0 and redis.call("ZCARD", key("leases")) >= limit then
    return "refused"
  end
  local token = request.token
  if token and tonumber(redis.call("HGET", key("token_leases"), token) or 0) >= request.token_limit then
    return "token_refused"
  end
  return nil
end
