--[[
  Registers a worker, or registers it again: what it says of itself replaces what was known, it leaves the indexes
  of the models that it no longer serves, and it is alive from now on. Doing it twice is doing it once.

  A worker that was alive keeps its turn and its lottery tickets; a new one gets the next turn, and stands behind
  the others of its load.

  Input:
    KEYS[1]  '{<ns>}' the namespace
    ARGV[1]  the worker's name
    ARGV[2]  expiration of its heartbeat in milliseconds; '' for a worker that sends none
    ARGV[3]  speed, greater than 0
    ARGV[4]  queue length
    ARGV[5]  '1' if it is multimodal, else '0'
    ARGV[6]  do it only if this is still the worker's registration; '0' to do it only if the worker is not alive and was
             not removed of late; '' to do it in any case
    ARGV[7]  its models, a JSON array of distinct strings
    ARGV[8…] for each model, in order, a draw from the exponential distribution of mean 1

  Output:
     1  a worker that was not alive before
     0  a worker that was alive already
    -1  nothing was done (only with ARGV[6]): the worker has registered again or is gone; with '0', it is alive or was
        removed
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "alive"
--- @include "finite"
--- @include "forget"
--- @include "join_lottery"
--- @include "key"
--- @include "member"
--- @include "now"
--- @include "prolong"
--- @include "unindex"
--- @include "whole_number"
local name = ARGV[1]
local expiration = ARGV[2] ~= "" and whole_number(ARGV[2], 1) or nil
local speed = finite(ARGV[3])
local queue_length = whole_number(ARGV[4], 0)
local multimodal = ARGV[5]
local expected_registration = ARGV[6]
local models = cjson.decode(ARGV[7])
local worker = key("worker", name)

if ARGV[2] ~= "" and not expiration then
  return redis.error_reply("INVALID expiration")
end
if not speed or speed == 0 then
  return redis.error_reply("INVALID speed")
end
if not queue_length then
  return redis.error_reply("INVALID queue length")
end
if multimodal ~= "0" and multimodal ~= "1" then
  return redis.error_reply("INVALID kind of worker")
end
if #ARGV - 7 ~= #models then
  return redis.error_reply("INVALID number of draws")
end
for _, model in ipairs(models) do
  if type(model) ~= "string" then
    return redis.error_reply("INVALID model")
  end
end
for i = 8, #ARGV do
  if not finite(ARGV[i]) then
    return redis.error_reply("INVALID draw")
  end
end

local was_alive = alive(name)
if expected_registration ~= "" then
  local current_registration = was_alive and redis.call("HGET", worker, "registration") or "0"
  if current_registration ~= expected_registration then
    return -1
  end
  if expected_registration == "0" and redis.call("EXISTS", key("removed", name)) == 1 then
    return -1
  end
end

local time = now()
-- The first write is one that a full store refuses; after one that it allows, it would allow all the others too.
local registration = redis.call("INCR", key("sequence"))
if not was_alive then
  forget(name)
  redis.call("DEL", key("removed", name))
end
local known = redis.call("HMGET", worker, "models", "speed", "turn")
local same_speed = known[2] and tonumber(known[2]) == speed
local turn = known[3] or registration
local index_member = member(turn, name)

redis.call("HSET", worker,
  "models", ARGV[7],
  "speed", ARGV[3],
  "queue_length", queue_length,
  "multimodal", multimodal,
  "check_heart_beat", expiration and "1" or "0",
  "registration", registration,
  "turn", turn,
  "heartbeat_at", time)
prolong(name, time, expiration)

local serves = {}
for i, model in ipairs(models) do
  serves[model] = true
  redis.call("SADD", key("models"), model)
  redis.call("ZADD", key("model", model), queue_length / speed, index_member)
  if not (same_speed and redis.call("ZSCORE", key("lottery", model), name)) then
    join_lottery(model, name, speed, tonumber(ARGV[7 + i]))
  end
end
for _, model in ipairs(known[1] and cjson.decode(known[1]) or {}) do
  if not serves[model] then
    unindex(model, index_member, name)
  end
end

return was_alive and 0 or 1
