--[[
  Decide whether a request may have a lease. Leases that have expired are ended first
  (include/leases/expire_for_grant.lua).

  Input:
    request  the request, as include/arguments/read_requests.lua returns it
    limit    how many leases may be active; 0 for any number
    time     the time
    decays   true if bookings decay
    grants   how many leases the call may grant

  Output: why the request gets no lease, 'refused' or 'token_refused', as the dispatch scripts return it; nil if it may
  have one. And true if a lease was ended.
]]
--- @include "expire_for_grant"
--- @include "key"
local function lease_refusal(request, limit, time, decays, grants)
  local has_ended = expire_for_grant(time, decays, grants)
  if limit > 0 and redis.call("ZCARD", key("leases")) >= limit then
    return "refused", has_ended
  end
  local token = request.token
  if token and tonumber(redis.call("HGET", key("token_leases"), token) or 0) >= request.token_limit then
    return "token_refused", has_ended
  end
  return nil, has_ended
end
