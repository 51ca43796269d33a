--[[
  Draw a worker for each request in a batch.

  Draws from the live workers that are not failing, with odds proportional to speed. If all are failing, it draws from
  those, with the same odds. As in FastChat, a draw books nothing, unless the request has a lease. Requests without one
  are counted until the next report of their worker.

  A draw chooses a band of speeds, a position in the band, and a fraction of the highest speed in the band. The worker
  at that position is chosen if its speed exceeds the fraction. Otherwise another draw decides. Fewer than half of the
  draws are rejected. The reference model is tests/model/lottery.py.

  If an expired worker is drawn, another draw decides, and the worker is purged before the call ends. A call purges at
  most about MAX_PURGED index entries, so that it cannot block Redis for long.

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
    cost_heads              HASH    w
    decay_heads             HASH    w
    decay:<pool>            STRING  rw
    lottery:<pool>          ZSET    rw
    lottery_failing:<pool>  ZSET    rw
    odds:<pool>             STRING  rw
    leases                  ZSET    rw
    token_leases            HASH    rw
    token_workers           HASH    rw
    sequence                STRING  rw
    reply:<request_id>      STRING  rw
    events                  STREAM  w

  Input:
    KEYS[1]   {<namespace>}
    ARGV[1]   request_id: id of the call; a repeated call with the same id gets the first reply and draws nothing
    ARGV[2]   reply_ttl: the milliseconds for which the reply is kept
    ARGV[3]   decays: '1' if bookings decay, otherwise '0'
    ARGV[4]   max_leases: how many leases may be active; 0 for any number
    ARGV[5…]  for each request: model, lease, draw
                model: the name of the model
                lease: the milliseconds after which the lease expires; 0 for a request without a lease; followed
                by '@<token>@<limit>' if at most `limit` leases of the token may be active
                draw: a random number from [0, 1)

  Output:
    an array with two entries for each request, in order: worker, lease
      worker  the name of the drawn worker; '' if no live worker serves the model; nil if the budget of this call did
              not suffice: repeat the request, with another id
      lease   the name of the lease; '' for a request without one; nil if worker is nil; 'refused' if max_leases leases
              are active, 'token_refused' if the token is at its limit; then worker is ''
    an empty array: reconcile.lua has taken this call back, and nothing was done
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "book_lease" when called
--- @include "compute_odds" when called
--- @include "key"
--- @include "lease_refusal" when called
--- @include "leave_lottery" when called
--- @include "now"
--- @include "pools_of" when called
--- @include "purge_worker" when called
--- @include "read_requests"
--- @include "run_batch"
--- @include "spend"
--- @include "whole_number"
local MAX_PURGED = 128

local request_id, reply_ttl, decays = ARGV[1], whole_number(ARGV[2], 1), ARGV[3] == "1"
local max_leases = ARGV[4]
local requests = read_requests(5, { "model", "lease", "draw" })
if not reply_ttl or not requests then
  return redis.error_reply("INVALID arguments")
end
local has_leases = false
for _, request in ipairs(requests) do
  has_leases = has_leases or request.lease_ttl > 0
end
local lease_limit = has_leases and whole_number(max_leases, 0) -- a call without leases does not need it
if lease_limit == nil then
  return redis.error_reply("INVALID limit")
end

-- One call reads the kept reply and what the first request needs. Most calls have only one request.
local first_model = requests[1].model
local read = redis.call("MGET", key("reply", request_id), key("pools", first_model), key("odds", first_model))
local kept, has_pools, first_odds = read[1], read[2], read[3]

local time = now()
local purged = 0

local pools_by_model = { [first_model] = not has_pools and { first_model } or nil }
local odds_of = { [key("lottery", first_model)] = first_odds or nil } -- by index

local function pools_for(model)
  local pools = pools_by_model[model]
  if not pools then
    pools = pools_of(model)
    pools_by_model[model] = pools
  end
  return pools
end

-- Return the odds of an index, as include/indexes/compute_odds.lua returns them.
local function odds_for(kind, pool, cached)
  local index = key(kind, pool)
  local odds = odds_of[index] or cached or compute_odds(index, pool, kind == "lottery")
  odds_of[index] = odds
  return odds
end

-- Choose one of several pools by weight. Return the pool and the rest of the draw, for a choice in it; nil if no pool
-- has a worker.
local function draw_pool(kind, pools, draw)
  if #pools == 1 then
    return odds_for(kind, pools[1]) ~= "" and pools[1] or nil, draw
  end
  local weights, total, cached = {}, 0, {}
  if kind == "lottery" and not odds_of[key(kind, pools[#pools])] then
    local names = {}
    for i, pool in ipairs(pools) do
      names[i] = key("odds", pool)
    end
    cached = redis.call("MGET", unpack(names))
    spend(#pools)
  end
  for i, pool in ipairs(pools) do
    weights[i] = tonumber(odds_for(kind, pool, cached[i]):match("%S+") or 0)
    total = total + weights[i]
  end
  local rest, last = draw * total, nil
  for i, pool in ipairs(pools) do
    if weights[i] > 0 then
      if rest < weights[i] then
        return pool, rest / weights[i]
      end
      rest, last = rest - weights[i], pool
    end
  end
  return last, 0 -- by rounding, or because no pool has a worker
end

-- Return a position in an index, and the speed that the worker there must exceed.
local function draw_position(draw, odds)
  local weight, bands = odds:match("(%S+)(.*)")
  local rest = draw * weight
  for top, first, size in bands:gmatch("(%S+) (%S+) (%S+)") do
    if rest < size * top or first == "0" then
      local offset = math.min(math.floor(rest / top), size - 1)
      return first + offset, rest - offset * top
    end
    rest = rest - size * top
  end
end

-- Return the draw after `draw`: the "minimal standard" generator (Park, Miller and Stockmeyer, 1993).
local function next_draw(draw)
  local state = math.floor(draw * 2147483646) + 1
  return (state * 48271 % 2147483647 - 0.5) / 2147483646
end

local expired, is_expired = {}, {} -- drawn but not purged yet, because a purge requires the odds to be computed again

local function purge_expired()
  while expired[1] and purged < MAX_PURGED do
    local pool, name = unpack(table.remove(expired))
    is_expired[name] = nil
    purged = purged + purge_worker(name)
    leave_lottery(pool, name) -- purge_worker() does not find this entry if the hash is gone
  end
  odds_of, pools_by_model = {}, {}
end

-- Draw a live worker of a model from `lottery` or `lottery_failing`. Return its name; '' if there is none, false if the
-- budget is spent.
local function draw_from(kind, model, draw)
  while true do
    local pool, rest = draw_pool(kind, pools_for(model), draw)
    if not pool then
      return ""
    end
    local index = key(kind, pool)
    local position, exceeded_speed = draw_position(rest, odds_of[index])
    local entry = redis.call("ZRANGE", index, position, position, "WITHSCORES")
    local name, speed = entry[1], tonumber(entry[2])
    if not name then -- the index was deleted by hand
      redis.call("DEL", key("odds", pool))
      odds_of = {}
    elseif exceeded_speed < speed then
      if is_expired[name] or #expired >= MAX_PURGED then
        purge_expired()
        if purged >= MAX_PURGED then
          return false
        end
      elseif redis.call("EXISTS", key("heartbeat", name), key("worker", name)) == 2 then
        return name
      else
        expired[#expired + 1] = { pool, name }
        is_expired[name] = true
      end
    end
    draw = next_draw(draw)
  end
end

local untracked = {} -- the number of requests without a lease, by worker

local function choose(request, seq)
  local is_leased = request.lease_ttl > 0
  local refusal = is_leased and lease_refusal(request, lease_limit, time, decays, #requests)
  if refusal then
    return "", refusal
  end
  local name = draw_from("lottery", request.model, request.draw)
  if name == "" then
    name = draw_from("lottery_failing", request.model, request.draw)
  end
  if not name then
    return nil
  elseif name == "" then
    return "", ""
  elseif not is_leased then
    untracked[name] = (untracked[name] or 0) + 1
    return name, ""
  end
  return name, book_lease(name, request, seq, time, decays)
end

local choices = run_batch({
  reply = key("reply", request_id),
  kept = kept,
  reply_ttl = reply_ttl,
  requests = requests,
  books_untracked = false,
  needs_seq = has_leases,
}, choose)
if expired[1] then
  purge_expired()
end
for name, number in pairs(untracked) do
  local worker = key("worker", name)
  redis.call("HSET", worker, "dispatched_by_lottery", redis.call("HGET", worker, "dispatched_by_lottery") + number)
end
return choices
