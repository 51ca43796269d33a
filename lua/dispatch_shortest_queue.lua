--[[
  Chooses a worker for each of a batch of requests, one after the other, and books it: the live worker with the least
  cost (controller/domain/load.py), among equals the one whose last turn is longest ago.

  Each model has two indexes: by the part of the cost that stays while time passes, and by the part that fades. They are
  read from the front, side by side; no worker that was not met yet can cost less than where they have been read to tell
  together (the threshold algorithm: Fagin, Lotem and Naor, 2001). Where all clients are of one kind, with leases or
  without, the first is the one. No more than LOOK are read of each: should that not be enough, it is the best of them.

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
--- @include "phase"
--- @include "unindex"
--- @include "whole_number"
local BUDGET = 256
local LOOK = 16

local reply = key("reply", ARGV[1])
local keep = whole_number(ARGV[2], 1)
local fades = ARGV[3] == "1"
if not keep or #ARGV < 5 or #ARGV % 2 == 0 then
  return redis.error_reply("INVALID arguments")
end
for i = 5, #ARGV, 2 do
  if not whole_number(ARGV[i], 0) then
    return redis.error_reply("INVALID time of a lease")
  end
end

local answered = redis.call("GET", reply)
if answered then
  return cjson.decode(answered)
end

local time = now()
local fading_time = fades and time or nil
local forgotten = 0

-- A worker's load if it can be chosen. Otherwise it is taken out of the way.
local function candidate(model, name, index_member)
  local load = load_of(name, fading_time)
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

-- The best worker; nil if one was met that cannot be chosen; false if there is none.
local function best_of(model, static_first)
  local static_index, fading_index = key("model", model), key("fading", model)
  local best, best_cost, static, fading, seen
  local last = 0
  for i = 1, 2 * LOOK, 2 do
    local least, score = 0, -1e15
    for step = 1, 2 do
      local of_static = (step == 1) == static_first
      local name, index_member
      if of_static then
        if i > last or not static then
          static = redis.call("ZRANGE", static_index, 0, i == 1 and 0 or LOOK - 1, "WITHSCORES")
        end
        index_member = static[i]
        if not index_member then
          return best or false -- all have been met
        end
        name, least = name_of(index_member), tonumber(static[i + 1])
      else
        if i > last or not fading then
          fading = redis.call("ZRANGE", fading_index, 0, i == 1 and 0 or LOOK - 1, "WITHSCORES")
        end
        name, score = fading[i], tonumber(fading[i + 1] or -1e15)
      end
      if name and not (seen and seen[name]) then
        local load = candidate(model, name, index_member)
        if not load then
          return nil
        end
        local cost = cost_of(load, load.unleased, load.expected)
        if not best or cost < best_cost or (cost == best_cost and tonumber(load.turn) < tonumber(best.turn)) then
          best, best_cost = load, cost
        end
      end
      -- Those not met yet cost as much as where the indexes were read to tell together, at least.
      local bound = least
      if least < 1e9 and score > -1e14 then
        bound = least + math.exp(score - phase(model, time))
      end
      if best and best_cost <= bound + bound * 1e-6 then
        return best
      end
      seen = seen or {}
      if name then
        seen[name] = true
      end
    end
    if i == 3 then
      last = 2 * LOOK
    end
  end
  return best or false
end

local function choose(model, lease_time, turn, static_first)
  while true do
    local best = best_of(model, static_first)
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
  -- The index that tells at once, where all clients ask as this one does.
  chosen[i] = choose(ARGV[2 + 2 * i], lease_time, turn + i, lease_time > 0 or not fades)
end
redis.call("SET", reply, cjson.encode(chosen), "PX", keep)
return chosen
