--[[
  Grant a lease: '<time>-<ttl in ms>-<sequence number>-<incarnation of the worker>@<name of the worker>'. If it counts
  for a token, '-<name of the token>' stands before the '@'. Leases are unique, because each dispatch has a sequence
  number of its own.

  Input:
    load     the worker's load, as include/load/read_load.lua returns it
    request  the request, as include/arguments/read_requests.lua returns it
    seq      the sequence number of the dispatch
    time     the time

  Output: the lease.
]]
--- @include "constants"
--- @include "count_for_token" when called
--- @include "key"
local function grant_lease(load, request, seq, time)
  local owner = redis.call("HGET", load.worker, "incarnation")
  local lease_ttl, token = request.lease_ttl, request.token
  if token then
    owner = owner .. "-" .. token
  end
  local lease = string.format("%.0f-%.0f-%.0f-%s@%s", time, lease_ttl, seq, owner, load.name)
  redis.call("ZADD", key("leases"), time + lease_ttl, lease)
  redis.call("PEXPIRE", key("leases"), LEASES_TTL)
  if token then
    count_for_token(key("token_leases"), token, 1)
    redis.call("PEXPIRE", key("token_leases"), LEASES_TTL)
  end
  return lease
end
