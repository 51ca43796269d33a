--[[
  Choose a worker for each request in a batch and book it, atomically.

  Picks the live worker with the lowest cost (include/load/cost_of.lua). Ties go to the one dispatched to least
  recently. Each request sees the bookings of those before it in the batch.

  Each pool has two indexes: one by the part of the cost that does not change while time passes, one by the untracked
  load, which decays. If all clients are of one kind, with leases or without, the best worker is the first one of one
  index, unless that one is full or failing. Otherwise it is the best of the first CANDIDATES_PER_INDEX workers of both.
  docs/concepts/dispatch.md says what that misses. For a model with several pools, the best workers of the pools are
  compared by cost and sequence number. The reference model is tests/model/shortest_queue.py.

  A request with an affinity goes to the worker that was remembered for one of its keys, unless that worker cannot be
  chosen or costs too much (include/affinity/prefer_remembered.lua). The worker of the request is then remembered for
  all of its keys.

  Expired workers found on the way are purged, at most about MAX_PURGED index entries per call, so that one call cannot
  block Redis for long. Requests for other models in the batch are answered nevertheless.

  Keys:
    workers                 ZSET    w
    worker:<name>           HASH    rw
    checkpoints:<name>      STRING  rw
    heartbeat:<name>        STRING  rw
    models                  SET     w
    pools:<model>           STRING  rw
    overflow                SET     rw
    cost_index:<pool>       ZSET    rw
    decay_index:<pool>      ZSET    rw
    cost_heads              HASH    rw
    decay_heads             HASH    rw
    decay:<pool>            STRING  rw
    lottery:<pool>          ZSET    w
    lottery_failing:<pool>  ZSET    w
    odds:<pool>             STRING  w
    leases                  ZSET    rw
    token_leases            HASH    rw
    token_workers           HASH    rw
    sequence                STRING  rw
    reply:<request_id>      STRING  rw
    affinity:<generation>   HASH    rw
    events                  STREAM  w

  Input:
    KEYS[1]   {<namespace>}
    ARGV[1]   request_id: id of the call; a repeated call with the same id gets the first reply and books nothing
    ARGV[2]   reply_ttl: the milliseconds for which the reply is kept
    ARGV[3]   decays: '1' if bookings decay, otherwise '0'
    ARGV[4]   max_leases: how many leases may be active; 0 for any number
    ARGV[5…]  for each request: model, lease
                model: the name of the model
                lease: the milliseconds after which the lease expires; 0 for a request without a lease; followed
                by '@<token>@<limit>' if at most `limit` leases of the token may be active, and by
                '#<ttl>#<max_keys>#<key>,<key>,…' for an affinity (include/arguments/parse_affinity.lua)

  Output:
    an array with two entries for each request, in order: worker, lease
      worker  the name of the chosen worker; '' if no live worker serves the model; nil if the budget of this call did
              not suffice: repeat the request, with another id
      lease   the name of the lease; '' for a request without one; nil if worker is nil; 'refused' if max_leases leases
              are active, 'token_refused' if the token is at its limit; then worker is ''
    then one entry for each request with an affinity that got a worker, in order: 'hit', 'overloaded', 'gone' or 'new',
    as include/affinity/prefer_remembered.lua says
    an empty array: reconcile.lua has taken this call back, and nothing was done
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "best_of_pools" when called
--- @include "book"
--- @include "constants"
--- @include "cost_of" when called
--- @include "decay_clock"
--- @include "grant_lease" when called
--- @include "is_alive"
--- @include "key"
--- @include "lease_refusal" when called
--- @include "leave_pools" when called
--- @include "now"
--- @include "pools_of" when called
--- @include "prefer_remembered" when called
--- @include "purge_worker" when called
--- @include "read_load"
--- @include "read_requests"
--- @include "remember_worker" when called
--- @include "run_batch"
--- @include "update_head"
--- @include "whole_number"
local CANDIDATES_PER_INDEX = 8
local MAX_PURGED = 128

local request_id, reply_ttl, decays = ARGV[1], whole_number(ARGV[2], 1), ARGV[3] == "1"
local max_leases = ARGV[4]
local requests = read_requests(5, { "model", "lease" })
if not reply_ttl or not requests then
  return redis.error_reply("INVALID arguments")
end
local has_leases, outcomes = false, nil -- outcomes: those of requests with an affinity
for _, request in ipairs(requests) do
  has_leases = has_leases or request.lease_ttl > 0
  outcomes = outcomes or request.affinity and {}
end
local lease_limit = has_leases and whole_number(max_leases, 0) -- a call without leases does not need it
if lease_limit == nil then
  return redis.error_reply("INVALID limit")
end

-- One call reads the kept reply and what the first request needs. Most calls have only one request.
local first_model = requests[1].model
local head = decays and not has_leases and redis.call("ZRANGE", key("decay_index", first_model), 0, 0)[1] or nil
local read = redis.call("MGET", key("reply", request_id), key("pools", first_model), key("decay", first_model),
  key("heartbeat", head or ""))
local kept, has_pools, decay_state, head_is_alive = read[1], read[2], read[3], head and read[4]

local time = now()
local decay_time = decays and time or nil
if decays then
  decay_clock(first_model, time, decay_state) -- caches the reading
end
local purged = 0

local pools_by_model = {}
if has_pools then
  head, head_is_alive = nil, nil -- the model may have other pools
else
  pools_by_model[first_model] = { first_model }
end

-- For models with several pools: the tables `known` of include/dispatch/best_of_pools.lua, one for each of the two
-- indexes that a request can start from.
local best_by_pool

-- Return a worker's load if it can be chosen. Otherwise purge the worker, or its index entry, while fewer than
-- MAX_PURGED were purged. member: its member in the cost index if it was found there. is_known_alive: true if its
-- heartbeat was read already.
local function candidate(model, pool, name, member, is_known_alive)
  local load = read_load(name, decay_time)
  local seq = member and tonumber(member:sub(1, 16)) or 0 -- as include/indexes/index_member.lua writes it
  local is_indexed = load and not load.draining and (not member or tonumber(load.index_seq) == seq)
  local has_heartbeat = is_known_alive or is_alive(name)
  if is_indexed and has_heartbeat then
    return load
  elseif purged >= MAX_PURGED then
    return nil
  end
  best_by_pool, pools_by_model = nil, {}
  if load and has_heartbeat then
    -- Its hash does not agree with this entry, so a booking would not move the entry.
    local index = member and "cost_index" or "decay_index"
    redis.call("ZREM", key(index, pool), member or name)
    update_head(index, pool)
    purged = purged + 1
  else
    purged = purged + purge_worker(name)
    leave_pools(name, seq, { pool }, { model }) -- purge_worker() does not find this entry if the hash is gone
  end
  return nil
end

-- Return the load of the best worker of a pool; false if the pool has no worker; nil if an entry was expired or
-- stale, and the caller must try again. head, is_known_alive: the first member of the index and whether it is alive, if
-- known.
local function best_of_pool(model, pool, index, limit, head, is_known_alive)
  head = head or redis.call("ZRANGE", key(index, pool), 0, 0)[1]
  if not head then
    return false
  end
  local member = index == "cost_index" and head or nil
  local best = candidate(model, pool, member and head:sub(17) or head, member, is_known_alive)
  if not best or not decays then
    return best
  end
  -- If the first worker of an index has no load of the other kind, no worker of the pool costs less.
  local is_lowest = member and best.untracked == 0 or not member and best.leased == best.finished
  if is_lowest and not best.capacity and not best.failing then
    return best -- the common case, which needs no cost
  end
  local lowest = cost_of(best, best.untracked, best.untracked_own_rate)
  if is_lowest and lowest >= FULL then
    -- For a worker with a capacity, the cost index has the cost as of its last change. If its bookings have decayed
    -- since, it costs less now. So if the first worker is full, it is certainly the best only if no worker has
    -- untracked load.
    local last = member and redis.call("ZRANGE", key("decay_index", pool), -1, -1, "WITHSCORES")[2]
    is_lowest = member and tonumber(last or 0) <= MAX_WITHOUT_LOAD
  end
  if is_lowest then
    return best
  end
  local is_seen = { [best.name] = true }
  for _, each in ipairs({ "cost_index", "decay_index" }) do
    for _, entry in ipairs(redis.call("ZRANGE", key(each, pool), 0, limit - 1)) do
      member = each == "cost_index" and entry or nil
      local name = member and entry:sub(17) or entry
      if not is_seen[name] then
        is_seen[name] = true
        local load = candidate(model, pool, name, member)
        if not load then
          return nil
        end
        local cost = cost_of(load, load.untracked, load.untracked_own_rate)
        if cost < lowest or (cost == lowest and tonumber(load.seq) < tonumber(best.seq)) then
          best, lowest = load, cost
        end
      end
    end
  end
  return best
end

local function choose(request, seq)
  local is_leased, affinity = request.lease_ttl > 0, request.affinity
  if is_leased then
    local refusal, has_ended = lease_refusal(request, lease_limit, time, decays, #requests)
    if has_ended then
      best_by_pool = nil -- workers cost less now
    end
    if refusal then
      return "", refusal
    end
  end
  local index = (is_leased or not decays) and "cost_index" or "decay_index"
  local best
  repeat
    local pools = pools_by_model[request.model] or pools_of(request.model)
    pools_by_model[request.model] = pools
    if #pools == 1 then
      best = best_of_pool(request.model, pools[1], index, CANDIDATES_PER_INDEX, head, head_is_alive)
    else
      best_by_pool = best_by_pool or { cost_index = {}, decay_index = {} }
      best = best_of_pools(request.model, pools, index, best_by_pool[index], best_of_pool, time, decays)
    end
    head, head_is_alive = nil, nil -- they are of the first request, before anything was purged
  until best ~= nil or purged >= MAX_PURGED
  if best == false then
    return "", ""
  elseif not best then
    return nil
  end
  if affinity then
    local outcome
    best, outcome = prefer_remembered(affinity, best, pools_by_model[request.model], time, decay_time)
    outcomes[#outcomes + 1] = outcome
    remember_worker(affinity, best.name)
  end
  local lease = ""
  if is_leased then
    lease = grant_lease(best, request, seq, time)
  end
  book(best, seq, time, decays, is_leased)
  if best_by_pool then
    for _, pool in ipairs(best.pools) do
      best_by_pool.cost_index[pool], best_by_pool.decay_index[pool] = nil, nil
    end
  end
  return best.name, lease
end

return run_batch({
  reply = key("reply", request_id),
  kept = kept,
  reply_ttl = reply_ttl,
  requests = requests,
  books_untracked = true,
  needs_seq = true,
  outcomes = outcomes,
}, choose)
