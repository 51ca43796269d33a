--[[
  Chooses a worker for each of a batch of requests, one after the other, and books it: the live worker with the least
  cost (controller/domain/load.py), among equals the one whose last turn is longest ago.

  Each pool has two indexes: by the part of the cost that stays while time passes, and by the part that fades. Where
  all clients are of one kind, with leases or without, the worker in front of the one or the other is the one. Where
  they are not, it is the best of the LOOK in front of each (docs/dispatch.md tells what that misses).
  The rule in Python: controller/domain/dispatch.py, least_cost().

  The indexes are those of pools (include/pools_of.lua). Where a model has several pools, the best worker of each is
  compared by cost and turn, as far as needed.

  A dead worker that is met is removed and the choice begins again. When many have died at once, a call removes no more
  than about MAX_REMOVED index entries. Requests for other models are not held up by that: they are answered in the same
  call.

  Input:
    KEYS[1]   '{<ns>}' the namespace
    ARGV[1]   request id: a call repeated with it gets the first call's answer and books nothing
    ARGV[2]   for how many milliseconds the answer is kept
    ARGV[3]   '1' if bookings fade, else '0'
    ARGV[4…]  for each request two: the model; for how many milliseconds a lease is wanted, 0 for none

  Output:
    an array with one entry a request, in order:
      the name of the chosen worker; with a lease, the lease, which ends in '@' and the name
      '' if the model has no live worker
      nil if the budget of this call did not suffice: ask again, with another id
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "alive"
--- @include "book"
--- @include "key"
--- @include "load_of"
--- @include "now"
--- @include "phase"
--- @include "spend"
--- @include "whole_number"
local MAX_REMOVED = 256
local LOOK = 8

local reply = key("reply", ARGV[1])
local keep = whole_number(ARGV[2], 1)
local fades = ARGV[3] == "1"
if not keep or #ARGV < 5 or #ARGV % 2 == 0 then
  return redis.error_reply("INVALID arguments")
end
local all_without_lease = true
for i = 5, #ARGV, 2 do
  if ARGV[i] ~= "0" then
    all_without_lease = false
    if not whole_number(ARGV[i], 0) then
      return redis.error_reply("INVALID time of a lease")
    end
  end
end

-- One call reads the answer and what the first request needs, which is mostly the only one.
local front = fades and all_without_lease and redis.call("ZRANGE", key("fading", ARGV[4]), 0, 0)[1] or nil
local read = redis.call("MGET", reply, key("pools", ARGV[4]), key("fade", ARGV[4]), key("heartbeat", front or ""))
local front_lives = front and read[4]
if read[1] then
  return cjson.decode(read[1])
end

local time = now()
local fading_time = fades and time or nil
if fades then
  phase(ARGV[4], time, read[3]) -- which is known from now on
end
local removed = 0

local pools_by_model = {}
if read[2] then
  front, front_lives = nil, nil -- that pool may not be the only one
else
  pools_by_model[ARGV[4]] = { ARGV[4] }
end

local function pools_for(model)
  local pools = pools_by_model[model]
  if not pools then
    --- @include "pools_of"
    pools = pools_of(model)
    pools_by_model[model] = pools
  end
  return pools
end

-- What the best worker of a pool costs, by kind of request and pool: { cost, turn, load }, or, without a load, what it
-- costs at least. Kept while a call goes on, for models with several pools.
local heads = { [true] = {}, [false] = {} }

-- A worker's load if it can be chosen. Otherwise it is taken out of the way. `lives`: it is known to.
local function candidate(model, pool, name, index_member, lives)
  local load = load_of(name, fading_time, pool)
  local vouched_for = load and not load.draining
  if vouched_for and index_member then
    --- @include "member"
    vouched_for = member(load.place, name) == index_member
  end
  lives = lives or alive(name)
  if vouched_for and lives then
    return load
  elseif removed >= MAX_REMOVED then
    return nil
  end
  --- @include "forget"
  --- @include "leave_pools"
  --- @include "note_front"
  heads = { [true] = {}, [false] = {} }
  pools_by_model = {}
  if load and lives then
    -- An entry that its hash does not vouch for would be chosen for ever.
    redis.call("ZREM", key(index_member and "model" or "fading", pool), index_member or name)
    note_front(index_member and "model" or "fading", pool)
    removed = removed + 1
  else
    removed = removed + forget(name)
    local place = index_member and tonumber(index_member:sub(1, 16)) or 0
    leave_pools(name, place, { pool }, { model }) -- should its hash be gone, forget() did not find it
  end
  return nil
end

-- The best worker of a pool; nil if one was met that cannot be chosen; false if there is none. `front`, `lives`: what
-- stands in front of the index, and whether that worker lives, where they are known.
local function best_of(model, pool, by_leases, look, front, lives)
  front = front or redis.call("ZRANGE", key(by_leases and "model" or "fading", pool), 0, 0)[1]
  if not front then
    return false
  end
  local name = front
  if by_leases then
    --- @include "name_of"
    name = name_of(front)
  end
  local best = candidate(model, pool, name, by_leases and front, lives)
  if not best or not fading_time then
    return best
  end
  -- Nobody can cost less than the first of an index does by what that is sorted by; most workers have nothing else.
  -- For those that tell a capacity, the first index has what each cost when it was touched last: if bookings have faded
  -- since, it costs less now, and may be missed. But where the first was full, the fronts of both are looked at.
  if not by_leases and best.leased == best.ended and not best.capacity and not best.failing then
    return best
  end
  --- @include "cost_of"
  local least = cost_of(best, best.unleased, best.expected)
  local nobody_costs_less
  if not by_leases then
    nobody_costs_less = best.leased == best.ended and least < 1e9
  elseif best.unleased == 0 and least >= 1e9 then -- a place among those that were full may be old: what faded made room
    local most_fading = redis.call("ZRANGE", key("fading", pool), -1, -1, "WITHSCORES")[2]
    nobody_costs_less = tonumber(most_fading or 0) <= -1e9
  else
    nobody_costs_less = best.unleased == 0
  end
  if nobody_costs_less then
    return best
  end
  --- @include "name_of"
  local seen = { [best.name] = true }
  for _, index in ipairs({ "model", "fading" }) do
    for _, entry in ipairs(redis.call("ZRANGE", key(index, pool), 0, look - 1)) do
      local index_member = index == "model" and entry
      name = index_member and name_of(entry) or entry
      if not seen[name] then
        seen[name] = true
        local load = candidate(model, pool, name, index_member)
        if not load then
          return nil
        end
        local cost = cost_of(load, load.unleased, load.expected)
        if cost < least or (cost == least and tonumber(load.turn) < tonumber(best.turn)) then
          best, least = load, cost
        end
      end
    end
  end
  return best
end

-- What the best worker of a pool costs at least, as an entry of `heads`, by what stands in front of its index: the
-- score and, for the first index, the turn.
local function bound_of(pool, by_leases, score, turn)
  if by_leases then
    return { score, turn, nil }
  end
  local failing = 0
  if score >= 9007199254740992 then -- the bands are those of include/index_fading.lua
    score, failing = score - 18014398509481984, 1e12
  end
  if score <= -1e9 then
    return { failing, score + 9007199254740992, nil }
  end
  --- @include "clock_of"
  local least = math.exp(score / 1e6 - phase(clock_of({ pool }), time))
  return { failing + math.min(least, 999999999), -1, nil } -- as include/cost_of.lua limits it
end

-- Sees to it that `heads` has an entry for each of the pools; false for a pool without workers.
local function look_at_fronts(pools, by_leases)
  local known = heads[by_leases]
  local index, fronts = "fading", key("fronts_fading")
  if by_leases then
    index, fronts = "model", key("fronts_model")
  end
  local missing = {}
  for _, pool in ipairs(pools) do
    if known[pool] == nil then
      missing[#missing + 1] = pool
    end
  end
  if not missing[1] then
    return
  end
  spend(#missing)
  for i, front in ipairs(redis.call("HMGET", fronts, unpack(missing))) do
    local pool = missing[i]
    local score, turn = front, nil
    if front and by_leases then
      score, turn = front:match("(%S+) (%S+)")
    elseif not front and pool:byte() ~= 30 then -- include/note_front.lua leaves it out
      local entry = redis.call("ZRANGE", key(index, pool), 0, 0, "WITHSCORES")
      score, turn = entry[2], by_leases and entry[1] and entry[1]:sub(1, 16)
    end
    known[pool] = score and bound_of(pool, by_leases, tonumber(score), tonumber(turn or 0)) or false
  end
end

-- The best worker of several pools; as best_of(). Each pool is looked at, but the workers only where no other pool is
-- known to have a better one, and of no more than LOOK pools.
local function best_of_all(model, pools, by_leases)
  look_at_fronts(pools, by_leases)
  local known = heads[by_leases]
  local look = math.max(1, math.ceil(LOOK / #pools)) -- at as many workers in all
  local looked_at = 0
  while true do
    local best, best_pool
    for _, pool in ipairs(pools) do
      local this = known[pool]
      if this and looked_at == LOOK and not this[3] then
        this = nil
      end
      if this and (not best or this[1] < best[1] or (this[1] == best[1] and this[2] < best[2])) then
        best, best_pool = this, pool
      end
    end
    if not best then
      return false
    elseif best[3] then
      return best[3]
    end
    local load = best_of(model, best_pool, by_leases, look)
    if load == nil then
      return nil
    elseif load then
      --- @include "cost_of"
      -- With clients of both kinds the order of turns says little, and to keep to it would take a look at all pools.
      local turn = by_leases and fading_time and -1 or tonumber(load.turn)
      looked_at = looked_at + 1
      known[best_pool] = { cost_of(load, load.unleased, load.expected), turn, load }
    else
      --- @include "note_front"
      note_front(by_leases and "model" or "fading", best_pool) -- the index was deleted by hand
      known[best_pool] = false
    end
  end
end

local function best_for(model, by_leases, first_front, lives)
  local pools = pools_for(model)
  if #pools == 1 then
    return best_of(model, pools[1], by_leases, LOOK, first_front, lives)
  end
  return best_of_all(model, pools, by_leases)
end

local requests = (#ARGV - 3) / 2
local turn = redis.call("INCRBY", key("sequence"), requests) - requests
local chosen = {}
local leases_are_in_order = false

local function choose(model, lease_time, turn_of_this)
  if lease_time > 0 and not leases_are_in_order then
    --- @include "end_overdue_leases"
    end_overdue_leases(time, fades, 64 + requests) -- more than this call may lend
    leases_are_in_order = true
  end
  local best
  repeat
    best = best_for(model, lease_time > 0 or not fades, front, front_lives)
    front, front_lives = nil, nil -- of the next, or after somebody was taken out of the way, it is another
  until best ~= nil or removed >= MAX_REMOVED
  if not best then
    return best == false and "" -- or nil
  end
  local lease
  if lease_time > 0 then
    --- @include "lend"
    lease = lend(best, lease_time, turn_of_this, time)
  end
  book(best, turn_of_this, time, fades, lease)
  for _, pool in ipairs(best.pools) do
    heads[true][pool], heads[false][pool] = nil, nil
  end
  return lease or best.name
end

for i = 1, requests do
  local affordable = i == 1 or not spend(0)
  chosen[i] = affordable and choose(ARGV[2 + 2 * i], tonumber(ARGV[3 + 2 * i]), turn + i) or false -- nil in the answer
end
redis.call("SET", reply, cjson.encode(chosen), "PX", keep)
return chosen
