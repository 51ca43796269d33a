--[[
  End a lease, because it was released, has expired, or is taken back.

  If the worker's last report came after the end of the request, the load does not count the request any more. The
  reference model is Load.release() in tests/model/load.py.

  Input:
    lease    the lease
    time     the time
    decays   true if bookings decay
    expired  true if the lease expired or its request never ran, false if it was released

  Output: true if the lease was active. It was not if the worker has registered again since, which ends its leases.
]]
--- @include "count_for_token" when called
--- @include "key"
--- @include "lease_counts"
--- @include "map_checkpoints"
--- @include "parse_lease"
--- @include "read_load"
--- @include "update_cost_index"
--- @include "write_untracked" when called
local function end_lease(lease, time, decays, expired)
  if redis.call("ZREM", key("leases"), lease) == 0 then
    return false
  end
  local leased_at, _, incarnation, name, token = parse_lease(lease)
  if token ~= "" then
    count_for_token(key("token_leases"), token, -1)
  end
  local load = read_load(name, decays and time)
  local fields = redis.call("HMGET", key("worker", name), "incarnation", "reported_at")
  if not load or fields[1] ~= incarnation then
    return false
  end
  local reported_at = tonumber(fields[2])
  leased_at = tonumber(leased_at)
  if load.finished > 0 and leased_at < reported_at and (expired or time < reported_at + 1000) then
    load.finished = load.finished - 1
  end
  -- A later report must not count this request as in flight. If the clock was set back in between, an earlier report
  -- may have acknowledged it already, and no count may drop below 0.
  local is_in_flight = leased_at >= reported_at
  if not is_in_flight then
    local oldest = redis.call("GETRANGE", key("checkpoints", name), 0, 12):match("^%d+")
    is_in_flight = oldest and leased_at >= tonumber(oldest)
  end
  if is_in_flight and load.leased_since_report > 0 then
    load.leased_since_report = load.leased_since_report - 1
    load.released_since_report = load.released_since_report + 1
    local is_counted = leased_at < tonumber(load.checkpoint_at) -- by a checkpoint
    if not is_counted then -- if the clock was set back, the last one may count leases from before that
      local most = tonumber(redis.call("GETRANGE", key("checkpoints", name), -11, -2)) or 0
      is_counted = most > load.leased_since_report
    end
    if is_counted then
      map_checkpoints(name, function(at, dispatched, leased)
        leased = at > leased_at and math.max(0, leased - 1) or leased
        return dispatched, math.min(leased, load.leased_since_report)
      end)
    end
  end
  load.leased = math.max(0, load.leased - 1)
  load.finished, load.least = math.min(load.finished, load.leased), math.min(load.least, load.leased)
  redis.call("HSET", load.worker, "leases", lease_counts(load))
  if load.capacity then
    write_untracked(load)
  end
  update_cost_index(load, decays)
  return true
end
