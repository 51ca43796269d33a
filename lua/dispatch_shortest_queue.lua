--[[
  Chooses a worker for each of a batch of requests, one after the other, and books it: the live worker with the least
  cost (controller/domain/load.py), among equals the one whose last turn is longest ago.

  Each model has two indexes: by the part of the cost that stays while time passes, and by the part that fades. Where
  all clients are of one kind, with leases or without, the worker in front of the one or the other is the one. Where
  they are not, it is the best of the LOOK in front of each (docs/dispatch.md tells what that misses).
  The rule in Python: controller/domain/dispatch.py, least_cost().

  A dead worker that is met is forgotten on the spot and the choice begins anew. So many may have died at once
  that forgetting them would hold up everybody: a call forgets no more than about BUDGET index entries.

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
      nil if this call has forgotten as many dead workers as it may: ask again, with another id
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "alive"
--- @include "book"
--- @include "cost_of"
--- @include "end_overdue_leases"
--- @include "forget"
--- @include "key"
--- @include "lend"
--- @include "load_of"
--- @include "member"
--- @include "name_of"
--- @include "now"
--- @include "unindex"
--- @include "whole_number"
local BUDGET = 256
local LOOK = 8

local reply = key("reply", ARGV[1])
local keep = whole_number(ARGV[2], 1)
local fades = ARGV[3] == "1"
if not keep or #ARGV < 5 or #ARGV % 2 == 0 then
  return redis.error_reply("INVALID arguments")
end
for i = 5, #ARGV, 2 do
  if ARGV[i] ~= "0" and not whole_number(ARGV[i], 0) then
    return redis.error_reply("INVALID time of a lease")
  end
end

local read = redis.call("MGET", reply, key("fade", ARGV[4]))
if read[1] then
  return cjson.decode(read[1])
end
fades_read[ARGV[4]] = read[2] -- of the first model, which is mostly the only one

local time = now()
local fading_time = fades and time or nil
local forgotten = 0

-- A worker's load if it can be chosen. Otherwise it is taken out of the way.
local function candidate(model, name, index_member)
  local load = load_of(name, fading_time, model)
  local vouched_for = load and not load.draining and (not index_member or member(load.place, name) == index_member)
  local lives = alive(name)
  if vouched_for and lives then
    return load
  elseif forgotten >= BUDGET then
    return nil
  elseif load and lives then
    -- An entry that its hash does not vouch for would be chosen for ever.
    redis.call("ZREM", key(index_member and "model" or "fading", model), index_member or name)
    forgotten = forgotten + 1
  else
    forgotten = forgotten + forget(name)
    unindex(model, index_member or name, name) -- should its hash be gone, forget() did not find it
  end
  return nil
end

-- Whether none of a model's workers has anything that fades.
local function nothing_fades(fading)
  local last = redis.call("ZRANGE", fading, -1, -1, "WITHSCORES")
  return tonumber(last[2] or 0) < -1e14
end

-- The best worker; nil if one was met that cannot be chosen; false if there is none.
local function best_of(model, by_leases)
  local static, fading = key("model", model), key("fading", model)
  local front = redis.call("ZRANGE", by_leases and static or fading, 0, 0)[1]
  if not front then
    return false
  end
  local best = candidate(model, by_leases and name_of(front) or front, by_leases and front)
  if not best then
    return nil
  end
  local least = cost_of(best, best.unleased, best.expected)
  -- Nobody can cost less than the first of an index does by what that is sorted by; only a place among those that were
  -- full may be old, for what fades may have made room since.
  if not fades or (by_leases and best.unleased == 0 and (least < 1e9 or nothing_fades(fading)))
    or (not by_leases and least == best.unleased / best.speed) then
    return best
  end
  local seen = { [best.name] = true }
  for _, index in ipairs({ static, fading }) do
    for _, entry in ipairs(redis.call("ZRANGE", index, 0, LOOK - 1)) do
      local name = index == static and name_of(entry) or entry
      if not seen[name] then
        seen[name] = true
        local load = candidate(model, name, index == static and entry)
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

local function choose(model, lease_time, turn)
  while true do
    local best = best_of(model, lease_time > 0 or not fades)
    if best then
      local lease = lease_time > 0 and lend(best, lease_time, turn, time)
      book(best, turn, time, fades, lease)
      return lease or best.name
    elseif best == false then
      return ""
    elseif forgotten >= BUDGET then
      return false
    end
  end
end

local requests = (#ARGV - 3) / 2
local turn = redis.call("INCRBY", key("sequence"), requests) - requests
local chosen = {}
local leases_are_in_order = false
for i = 1, requests do
  local lease_time = tonumber(ARGV[3 + 2 * i])
  if lease_time > 0 and not leases_are_in_order then
    end_overdue_leases(time, fades, 64)
    leases_are_in_order = true
  end
  chosen[i] = choose(ARGV[2 + 2 * i], lease_time, turn + i)
end
redis.call("SET", reply, cjson.encode(chosen), "PX", keep)
return chosen
