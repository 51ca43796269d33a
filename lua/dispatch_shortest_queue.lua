--[[
  Chooses a worker for each of a batch of requests, one after the other, and books it: the live worker with the least
  cost (controller/domain/load.py), among equals the one whose last turn is longest ago.

  Each model has two indexes: by the part of the cost that stays while time passes, and by the part that fades. Where
  all clients are of one kind, with leases or without, the worker in front of the one or the other is the one. Where
  they are not, it is the best of the LOOK in front of each (docs/dispatch.md tells what that misses).
  The rule in Python: controller/domain/dispatch.py, least_cost().

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
local read = redis.call("MGET", reply, key("fade", ARGV[4]), key("heartbeat", front or ""))
local front_lives = front and read[3]
if read[1] then
  return cjson.decode(read[1])
end

local time = now()
local fading_time = fades and time or nil
if fades then
  phase(ARGV[4], time, read[2]) -- which is known from now on
end
local removed = 0

-- A worker's load if it can be chosen. Otherwise it is taken out of the way. `lives`: it is known to.
local function candidate(model, name, index_member, lives)
  local load = load_of(name, fading_time, model)
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
  --- @include "unindex"
  if load and lives then
    -- An entry that its hash does not vouch for would be chosen for ever.
    redis.call("ZREM", key(index_member and "model" or "fading", model), index_member or name)
    removed = removed + 1
  else
    removed = removed + forget(name)
    unindex(model, index_member or name, name) -- should its hash be gone, forget() did not find it
  end
  return nil
end

-- The best worker; nil if one was met that cannot be chosen; false if there is none. `front`, `lives`: what stands in
-- front of the index, and whether that worker lives, where they are known.
local function best_of(model, by_leases, front, lives)
  front = front or redis.call("ZRANGE", key(by_leases and "model" or "fading", model), 0, 0)[1]
  if not front then
    return false
  end
  local name = front
  if by_leases then
    --- @include "name_of"
    name = name_of(front)
  end
  local best = candidate(model, name, by_leases and front, lives)
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
    local most_fading = redis.call("ZRANGE", key("fading", model), -1, -1, "WITHSCORES")[2]
    nobody_costs_less = tonumber(most_fading or 0) < -1e14
  else
    nobody_costs_less = best.unleased == 0
  end
  if nobody_costs_less then
    return best
  end
  --- @include "name_of"
  local seen = { [best.name] = true }
  for _, index in ipairs({ "model", "fading" }) do
    for _, entry in ipairs(redis.call("ZRANGE", key(index, model), 0, LOOK - 1)) do
      local index_member = index == "model" and entry
      name = index_member and name_of(entry) or entry
      if not seen[name] then
        seen[name] = true
        local load = candidate(model, name, index_member)
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

local requests = (#ARGV - 3) / 2
local turn = redis.call("INCRBY", key("sequence"), requests) - requests
local chosen = {}
local leases_are_in_order = false

local function choose(model, lease_time, turn_of_this)
  if lease_time > 0 and not leases_are_in_order then
    --- @include "end_overdue_leases"
    end_overdue_leases(time, fades, 2 * requests) -- more than this call may lend
    leases_are_in_order = true
  end
  local best
  repeat
    best = best_of(model, lease_time > 0 or not fades, front, front_lives)
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
  return lease or best.name
end

for i = 1, requests do
  local affordable = i == 1 or not spend(0)
  chosen[i] = affordable and choose(ARGV[2 + 2 * i], tonumber(ARGV[3 + 2 * i]), turn + i) or false -- nil in the answer
end
redis.call("SET", reply, cjson.encode(chosen), "PX", keep)
return chosen
