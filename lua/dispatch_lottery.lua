--[[
  Chooses a worker for each of a batch of requests, one after the other: at random among the live ones, with a
  probability proportional to speed. Nothing is booked, as in FastChat, but for a request with a lease; how many were
  drawn without is counted, for what reports tell. Those that fail are passed over and get new tickets.
  The rule in Python: controller/domain/dispatch.py, lottery() and next_ticket().

  A dead worker that holds the earliest ticket is forgotten on the spot and the next is tried; a call forgets no more
  than about BUDGET index entries.

  Input:
    KEYS[1]   '{<ns>}' the namespace
    ARGV[1]   request id: a call repeated with it gets the first call's answer and draws nothing
    ARGV[2]   for how many milliseconds the answer is kept
    ARGV[3]   '1' if bookings fade, else '0'
    ARGV[4…]  for each request three: the model; for how many milliseconds a lease is wanted, 0 for none; a draw from
              the exponential distribution of mean 1

  Output:
    an array with one entry a request, in order:
      the name of the chosen worker; with a lease, the lease, which ends in '@' and the name
      '' if the model has no live worker
      nil if this call has forgotten as many dead workers as it may: ask again, with another id
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "alive"
--- @include "book"
--- @include "end_overdue_leases"
--- @include "finite"
--- @include "forget"
--- @include "key"
--- @include "lend"
--- @include "load_of"
--- @include "now"
--- @include "whole_number"
local BUDGET = 256
local MAX_PASSED_OVER = 16

local reply = key("reply", ARGV[1])
local keep = whole_number(ARGV[2], 1)
local fades = ARGV[3] == "1"
if not keep or #ARGV < 6 or #ARGV % 3 ~= 0 then
  return redis.error_reply("INVALID arguments")
end
for i = 5, #ARGV, 3 do
  if not whole_number(ARGV[i], 0) or not finite(ARGV[i + 1]) then
    return redis.error_reply("INVALID request")
  end
end

local answered = redis.call("GET", reply)
if answered then
  local kept = cjson.decode(answered)
  return kept.chosen or kept -- settle.lua leaves an empty one
end

local time = now()
local forgotten = 0

-- Gives a worker its next ticket.
local function draw_ticket(lottery, clock, draw, worker)
  redis.call("ZADD", lottery, clock + draw / worker.speed, worker.name)
end

-- The worker with the earliest ticket of those that do not fail, or, if the next MAX_PASSED_OVER all fail, of all; ""
-- if there is none, false over the budget.
local function draw_one(model, draw)
  local lottery = key("lottery", model)
  local passed_over = {}
  while #passed_over < MAX_PASSED_OVER do
    local place = 1 + #passed_over -- at 0 stands the clock, the member ''
    local entry = redis.call("ZRANGE", lottery, place, place, "WITHSCORES")
    local name = entry[1]
    if not name then
      break
    end
    local fields = redis.call("HMGET", key("worker", name), "speed", "load")
    local worker = { name = name, ticket = tonumber(entry[2]), speed = tonumber(fields[1]) }
    if not fields[1] or not alive(name) then
      if forgotten >= BUDGET then
        return false
      end
      forgotten = forgotten + forget(name)
      redis.call("ZREM", lottery, name) -- should its hash be gone, forget() did not find it
    elseif fields[2]:find("%a%a") then -- why it fails is the only word in there; 1e-07 is none
      passed_over[#passed_over + 1] = worker
    else
      redis.call("ZADD", lottery, worker.ticket, "")
      draw_ticket(lottery, worker.ticket, draw, worker)
      for _, failing in ipairs(passed_over) do
        draw_ticket(lottery, worker.ticket, draw, failing)
      end
      return name
    end
  end
  local first = passed_over[1]
  if not first then
    return ""
  end
  redis.call("ZADD", lottery, first.ticket, "")
  draw_ticket(lottery, first.ticket, draw, first)
  return first.name
end

local drawn = {} -- without a lease, by worker

local function choose(model, lease_time, draw, turn)
  local name = draw_one(model, draw)
  if not name or name == "" then
    return name
  elseif lease_time == 0 then
    drawn[name] = (drawn[name] or 0) + 1
    return name
  end
  local load = load_of(name, fades and time)
  local lease = lend(load, lease_time, turn, time)
  book(load, turn, time, fades, true)
  return lease
end

local requests = #ARGV / 3 - 1
local leased = false
for i = 1, requests do
  leased = leased or tonumber(ARGV[2 + 3 * i]) > 0
end
if leased then
  end_overdue_leases(time, fades, 64 + requests) -- more than this call may lend
end
local turn = leased and redis.call("INCRBY", key("sequence"), requests) - requests or 0 -- nothing else has one
local chosen = {}
for i = 1, requests do
  chosen[i] = choose(ARGV[1 + 3 * i], tonumber(ARGV[2 + 3 * i]), tonumber(ARGV[3 + 3 * i]), turn + i)
end
for name, times in pairs(drawn) do
  local worker = key("worker", name)
  redis.call("HSET", worker, "drawn", (redis.call("HGET", worker, "drawn") or 0) + times)
end
redis.call("SET", reply, cjson.encode({ chosen = chosen }), "PX", keep) -- and not booked, but for the leases
return chosen
