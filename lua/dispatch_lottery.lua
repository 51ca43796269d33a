--[[
  Chooses a worker for each of a batch of requests, one after the other: at random among the live ones, with a
  probability proportional to speed. Nothing is booked, as in FastChat, but for a request with a lease. One that fails
  is passed over, for as long as others can be drawn in its place.
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
--- @include "finite"
--- @include "forget"
--- @include "key"
--- @include "lend"
--- @include "load_of"
--- @include "now"
--- @include "whole_number"
local BUDGET = 256
local LOOK = 16

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
  return cjson.decode(answered)
end

local time = now()
local forgotten = 0

-- The worker with the earliest ticket, which then gets a new one; "" if there is none, false over the budget.
local function draw_one(model, draw)
  local lottery = key("lottery", model)
  while true do
    local head = redis.call("ZRANGE", lottery, 1, 1, "WITHSCORES") -- at 0 stands the clock, the member ''
    local name, ticket = head[1], tonumber(head[2])
    if not name then
      return ""
    end
    local fields = redis.call("HMGET", key("worker", name), "speed", "load")
    if fields[1] and alive(name) then
      redis.call("ZADD", lottery, ticket, "")
      redis.call("ZADD", lottery, ticket + draw / tonumber(fields[1]), name)
      return name, fields[2]:find("%a%a") ~= nil -- why it fails is the only word in there; 1e-07 is none
    end
    if forgotten >= BUDGET then
      return false
    end
    forgotten = forgotten + forget(name)
    redis.call("ZREM", lottery, name) -- should its hash be gone, forget() did not find it
  end
end

local function choose(model, lease_time, draw, turn)
  local name, failing
  for _ = 1, LOOK do
    name, failing = draw_one(model, draw)
    if not failing then
      break
    end
  end
  if not name or name == "" or lease_time == 0 then
    return name
  end
  local load = load_of(name, fades and time)
  local lease = lend(load, lease_time, turn, time)
  book(load, turn, time, fades, true)
  return lease
end

local leases = 0
for i = 5, #ARGV, 3 do
  leases = leases + (tonumber(ARGV[i]) > 0 and 1 or 0)
end
local turn = leases > 0 and redis.call("INCRBY", key("sequence"), #ARGV / 3) or 0
local chosen = {}
for i = 4, #ARGV, 3 do
  chosen[#chosen + 1] = choose(ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]), turn - (#ARGV - i) / 3)
end
redis.call("SET", reply, cjson.encode(chosen), "PX", keep)
return chosen
