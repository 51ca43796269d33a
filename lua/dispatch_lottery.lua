--[[
  Chooses a worker for each of a batch of requests, one after the other: at random among the live ones, with a
  probability proportional to speed. Nothing is booked, as in FastChat.
  The rule in Python: controller/domain/dispatch.py, lottery() and next_ticket().

  A dead worker that holds the earliest ticket is forgotten on the spot and the next is tried; a call forgets no more
  than about BUDGET index entries.

  Input:
    KEYS[1]   '{<ns>}' the namespace
    ARGV[1]   request id: a call repeated with it gets the first call's answer and draws nothing
    ARGV[2]   for how many milliseconds the answer is kept
    ARGV[3…]  for each request two: the model, a draw from the exponential distribution of mean 1

  Output:
    an array with one entry a request, in order:
      the name of the chosen worker
      '' if the model has no live worker
      nil if this call has forgotten as many dead workers as it may: ask again, with another id
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "alive"
--- @include "finite"
--- @include "forget"
--- @include "key"
--- @include "whole_number"
local BUDGET = 256

local reply = key("reply", ARGV[1])
local keep = whole_number(ARGV[2], 1)
if not keep or #ARGV < 4 or #ARGV % 2 == 1 then
  return redis.error_reply("INVALID arguments")
end
for i = 4, #ARGV, 2 do
  if not finite(ARGV[i]) then
    return redis.error_reply("INVALID draw")
  end
end

local answered = redis.call("GET", reply)
if answered then
  return cjson.decode(answered)
end

local forgotten = 0

local function choose(model, draw)
  local lottery = key("lottery", model)
  while true do
    local head = redis.call("ZRANGE", lottery, 1, 1, "WITHSCORES") -- at 0 stands the clock, the member ''
    local name, ticket = head[1], tonumber(head[2])
    if not name then
      return ""
    end
    local speed = redis.call("HGET", key("worker", name), "speed")
    if speed and alive(name) then
      redis.call("ZADD", lottery, ticket, "")
      redis.call("ZADD", lottery, ticket + draw / tonumber(speed), name)
      return name
    end
    if forgotten >= BUDGET then
      return false
    end
    forgotten = forgotten + forget(name)
    redis.call("ZREM", lottery, name) -- should its hash be gone, forget() did not find it
  end
end

local chosen = {}
for i = 3, #ARGV, 2 do
  chosen[#chosen + 1] = choose(ARGV[i], tonumber(ARGV[i + 1]))
end
redis.call("SET", reply, cjson.encode(chosen), "PX", keep)
return chosen
