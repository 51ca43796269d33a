--[[
  Registers a worker, or registers it again with all that it says of itself now. It is alive from then on.

  A worker that registers again of its own accord has begun anew: the leases of its life before are over, and what it
  reports is all that it has to do. If it was told to drain, it still drains. A worker whose speed and models are what
  they were keeps its tickets in the lottery, so that registering often is of no use; its place among equals is kept in
  any case.

  Input:
    KEYS[1]   '{<ns>}' the namespace
    ARGV[1]   the worker's name
    ARGV[2]   expiration of its heartbeat in milliseconds; '' for a worker that need not send any
    ARGV[3]   speed; 0 only for a worker without models, such as a cluster that has no workers
    ARGV[4]   queue length
    ARGV[5]   '1' if it is multimodal, else '0'
    ARGV[6]   '' to register in any case; the number of a registration: only if that is still the worker's, which then
              goes on with its life; '0': only if it is not alive and was not removed of late
    ARGV[7]   models, a JSON array of distinct names
    ARGV[8]   capacity: how many requests it runs at once; '' if it does not tell
    ARGV[9]   '1' if bookings fade, else '0'
    ARGV[10]  for how many milliseconds a booking is under way to a worker
    ARGV[11]  how many milliseconds ago it said so
    ARGV[12]  '1' if it drains in any case, else '0'
    ARGV[13]  '1' if it is known to have answered a poll, else '0'
    ARGV[14…] for each model a draw from the exponential distribution of mean 1

  Output:
    1   it is new
    0   it was registered
    -1  with ARGV[6]: nothing was done
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "alive"
--- @include "finite"
--- @include "forget"
--- @include "forgive"
--- @include "index_fading"
--- @include "index_static"
--- @include "join_lottery"
--- @include "key"
--- @include "learn"
--- @include "load_of"
--- @include "member"
--- @include "now"
--- @include "phase"
--- @include "prolong"
--- @include "take_report"
--- @include "unindex"
--- @include "whole_number"
--- @include "write_load"
local name = ARGV[1]
local expiration = ARGV[2] ~= "" and whole_number(ARGV[2], 1) or nil
local speed = finite(ARGV[3])
local queue_length = whole_number(ARGV[4], 0)
local multimodal = ARGV[5]
local expected_registration = ARGV[6]
local models = cjson.decode(ARGV[7])
local fades = ARGV[9] == "1"
local unseen_for = whole_number(ARGV[10], 0)
local age = whole_number(ARGV[11], 0)
local worker = key("worker", name)

if ARGV[2] ~= "" and not expiration then
  return redis.error_reply("INVALID expiration")
end
if not speed or (speed == 0 and #models > 0) then
  return redis.error_reply("INVALID speed")
end
if not queue_length then
  return redis.error_reply("INVALID queue length")
end
if multimodal ~= "0" and multimodal ~= "1" then
  return redis.error_reply("INVALID kind of worker")
end
if ARGV[8] ~= "" and not whole_number(ARGV[8], 1) then
  return redis.error_reply("INVALID capacity")
end
if not unseen_for or not age then
  return redis.error_reply("INVALID time")
end
for i = 12, 13 do
  if ARGV[i] ~= "0" and ARGV[i] ~= "1" then
    return redis.error_reply("INVALID state")
  end
end
if #ARGV - 13 ~= #models then
  return redis.error_reply("INVALID number of draws")
end
for _, model in ipairs(models) do
  if type(model) ~= "string" then
    return redis.error_reply("INVALID model")
  end
end
for i = 14, #ARGV do
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
local before = load_of(name, fades and time)
local known = redis.call("HMGET", worker, "models", "speed")
local same_speed = known[2] and tonumber(known[2]) == speed
local drained_before = redis.call("DEL", key("draining", name)) == 1 or (before ~= nil and before.draining)
local draining = drained_before or ARGV[12] == "1"

redis.call("HSET", worker,
  "models", ARGV[7],
  "speed", ARGV[3],
  "capacity", ARGV[8],
  "multimodal", multimodal,
  "check_heart_beat", expiration and "1" or "0",
  "registration", registration,
  "heartbeat_at", time)
prolong(name, time, expiration)
for _, model in ipairs(fades and not draining and models or {}) do
  learn(model, time, speed, 0, 0) -- so that its phase has begun
end

local load = before
local goes_on = was_alive and expected_registration ~= ""
local of_first_model = goes_on and before.models[1] == models[1]
if goes_on then
  forgive(load)
  take_report(load, queue_length, time - age, unseen_for, time, fades)
else
  redis.call("HSET", worker,
    "life", registration,
    "polled", ARGV[13],
    "reported", queue_length,
    "reported_at", time,
    "drawn", 0)
  load = {
    name = name,
    worker = worker,
    leased = 0,
    ended = 0,
    unleased = queue_length,
    turn = before and before.turn or registration,
    place = before and before.place or registration,
    booked = 0,
    lent = 0,
    done = 0,
    marked_at = 0,
    marks = "",
    draining = draining,
  }
end
load.models = models
load.speed = ARGV[3]
load.capacity = whole_number(ARGV[8], 1)
load.expected = load.expected or load.unleased
if not of_first_model then
  local _, _, phase_text = phase(models[1], time)
  load.phase = phase_text
end
write_load(load, nil, load.marks)

local serves = {}
for i, model in ipairs(models) do
  serves[model] = true
  if not draining then
    redis.call("SADD", key("models"), model)
    if not (same_speed and redis.call("ZSCORE", key("lottery", model), name)) then
      join_lottery(model, name, speed, tonumber(ARGV[13 + i]))
    end
  end
end
index_static(load, fades)
index_fading(load, fades and time)
local index_member = member(load.place, name)
for _, model in ipairs(known[1] and cjson.decode(known[1]) or {}) do
  if not serves[model] then
    unindex(model, index_member, name)
  end
end

return was_alive and 0 or 1
