--[[
  Takes the heartbeats of a batch of workers: each lives on, with the queue length that it reports.

  A worker that is not alive is not revived, whether a sweep has seen it or not: it is told so, and registers.

  Input:
    KEYS[1]   '{<ns>}' the namespace
    ARGV[1]   expiration of the heartbeats in milliseconds
    ARGV[2…]  for each heartbeat two: the worker's name, its queue length

  Output:
    an array with one entry a heartbeat, in order:
      1  the worker is registered
      0  it is not
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "alive"
--- @include "forget"
--- @include "key"
--- @include "member"
--- @include "now"
--- @include "prolong"
--- @include "whole_number"
local expiration = whole_number(ARGV[1], 1)
if not expiration then
  return redis.error_reply("INVALID expiration")
end
if #ARGV % 2 == 0 then
  return redis.error_reply("INVALID number of arguments")
end
for i = 3, #ARGV, 2 do
  if not whole_number(ARGV[i], 0) then
    return redis.error_reply("INVALID queue length")
  end
end

local time = now()
local dead = {}

local function take(name, queue_length)
  local worker = key("worker", name)
  local fields = redis.call("HMGET", worker, "models", "speed", "turn", "check_heart_beat")
  if not fields[1] or not alive(name) then
    dead[#dead + 1] = name
    return 0
  end
  redis.call("HSET", worker, "queue_length", queue_length, "heartbeat_at", time)
  prolong(name, time, fields[4] == "1" and expiration or nil)
  local index_member = member(fields[3], name)
  for _, model in ipairs(cjson.decode(fields[1])) do
    redis.call("ZADD", key("model", model), queue_length / tonumber(fields[2]), index_member)
  end
  return 1
end

local known = {}
for i = 2, #ARGV, 2 do
  known[#known + 1] = take(ARGV[i], tonumber(ARGV[i + 1]))
end
-- Last: a full store refuses the heartbeats of the living, all or none, but not what makes room.
for _, name in ipairs(dead) do
  forget(name)
end
return known
