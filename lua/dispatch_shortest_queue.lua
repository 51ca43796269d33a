--[[
  Chooses a worker for each of a batch of requests, one after the other, and books it: the live worker with the
  least queue_length / speed, among equals the one whose last turn is longest ago; then its queue is one longer.
  The rule in Python: controller/domain/dispatch.py, shortest_queue() and book().

  A dead worker at the head of an index is forgotten on the spot and the next is tried. So many may have died at once
  that forgetting them would hold up everybody: a call forgets no more than about BUDGET index entries.

  Input:
    KEYS[1]   '{<ns>}' the namespace
    ARGV[1]   request id: a call repeated with it gets the first call's answer and books nothing
    ARGV[2]   for how many milliseconds the answer is kept
    ARGV[3…]  for each request the model

  Output:
    an array with one entry a request, in order:
      the name of the chosen worker
      '' if the model has no live worker
      nil if this call has forgotten as many dead workers as it may: ask again, with another id
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "alive"
--- @include "forget"
--- @include "key"
--- @include "member"
--- @include "name_of"
--- @include "unindex"
--- @include "whole_number"
local BUDGET = 256

local reply = key("reply", ARGV[1])
local keep = whole_number(ARGV[2], 1)
if not keep or #ARGV < 3 then
  return redis.error_reply("INVALID arguments")
end

local answered = redis.call("GET", reply)
if answered then
  return cjson.decode(answered)
end

local function book(name, turn, fields)
  local queue_length = tonumber(fields[1]) + 1
  local load = queue_length / tonumber(fields[2])
  local old_member, new_member = member(fields[4], name), member(turn, name)
  redis.call("HSET", key("worker", name), "queue_length", queue_length, "turn", turn)
  for _, model in ipairs(cjson.decode(fields[3])) do
    local index = key("model", model)
    redis.call("ZREM", index, old_member)
    redis.call("ZADD", index, load, new_member)
  end
end

local forgotten = 0

local function choose(model, turn)
  local index = key("model", model)
  while true do
    local head = redis.call("ZRANGE", index, 0, 0)[1]
    if not head then
      return ""
    end
    local name = name_of(head)
    local fields = redis.call("HMGET", key("worker", name), "queue_length", "speed", "models", "turn")
    local vouched_for = fields[4] and member(fields[4], name) == head
    if vouched_for and alive(name) then
      book(name, turn, fields)
      return name
    elseif forgotten >= BUDGET then
      return false
    elseif alive(name) then
      redis.call("ZREM", index, head) -- an entry that its hash does not vouch for would be chosen for ever
      forgotten = forgotten + 1
    else
      forgotten = forgotten + forget(name)
      unindex(model, head, name) -- should its hash be gone, forget() did not find it
    end
  end
end

local requests = #ARGV - 2
local turn = redis.call("INCRBY", key("sequence"), requests) - requests
local chosen = {}
for i = 1, requests do
  chosen[i] = choose(ARGV[2 + i], turn + i)
end
redis.call("SET", reply, cjson.encode(chosen), "PX", keep)
return chosen
