--[[
  Takes what workers say of their queues: the heartbeats of a batch of workers, each of which lives on, or answers to
  polls, which prolong no life.

  A worker that is not alive is not revived, whether a sweep has seen it or not: it is told so, and registers. A
  heartbeat forgives all failures, an answer to a poll as include/forgive.lua says; late reports, too.

  Input:
    KEYS[1]   '{<ns>}' the namespace
    ARGV[1]   request id: a call repeated with it gets the first call's answer and changes nothing
    ARGV[2]   for how many milliseconds that answer is kept
    ARGV[3]   expiration of the heartbeats in milliseconds; '' for answers to polls
    ARGV[4]   '1' if bookings fade, else '0'
    ARGV[5]   for how many milliseconds a booking is under way to a worker
    ARGV[6…]  for each worker three: its name, its queue length, how many milliseconds ago it said so

  Output:
    an array with one entry a worker, in order; there may be fewer: then call again for the rest
      1  the worker is registered
      0  it is not
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "alive"
--- @include "end_overdue_leases"
--- @include "forget"
--- @include "forgive"
--- @include "index_fading"
--- @include "index_static"
--- @include "key"
--- @include "load_of"
--- @include "now"
--- @include "prolong"
--- @include "spend"
--- @include "take_report"
--- @include "whole_number"
--- @include "write_load"
local reply = key("reply", ARGV[1])
local keep = whole_number(ARGV[2], 1)
local poll = ARGV[3] == ""
local expiration = not poll and whole_number(ARGV[3], 1) or nil
local fades = ARGV[4] == "1"
local unseen_for = whole_number(ARGV[5], 0)
if not poll and not expiration then
  return redis.error_reply("INVALID expiration")
end
if not keep or not unseen_for or #ARGV < 8 or #ARGV % 3 ~= 2 then
  return redis.error_reply("INVALID arguments")
end
for i = 7, #ARGV, 3 do
  if not whole_number(ARGV[i], 0) or not whole_number(ARGV[i + 1], 0) then
    return redis.error_reply("INVALID report")
  end
end

local answered = redis.call("GET", reply)
if answered then
  return cjson.decode(answered)
end

local time = now()
local dead = {}

local function take(name, queue_length, age)
  local load = load_of(name, fades and time)
  if not load or not alive(name) then
    dead[#dead + 1] = name
    return 0
  end
  if poll then
    redis.call("HSET", load.worker, "polled", "1")
  else
    local must_send = redis.call("HGET", load.worker, "check_heart_beat") == "1"
    redis.call("HSET", load.worker, "heartbeat_at", time)
    prolong(name, time, must_send and expiration or nil)
  end
  local failed = load.failing
  if poll then
    forgive(load)
  else
    load.failing = nil
  end
  take_report(load, queue_length, time - age, unseen_for, time, fades)
  write_load(load, nil, load.marks)
  index_static(load, fades)
  index_fading(load, fades and time)
  if failed and not load.failing then
    --- @include "index_lottery"
    index_lottery(load)
  end
  return 1
end

local known = {}
for i = 6, #ARGV, 3 do
  known[#known + 1] = take(ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]))
  if spend(0) then
    break
  end
end
end_overdue_leases(time, fades, 64)
-- Last: a full store refuses the heartbeats of the living, all or none, but not what makes room.
for _, name in ipairs(dead) do
  forget(name)
end
redis.pcall("SET", reply, cjson.encode(known), "PX", keep) -- a full store may refuse
return known
