--[[
  Puts workers behind all others, because they failed: each until its next heartbeat, or, where it failed to answer
  polls, until it answers one.

  Input:
    KEYS[1]   '{<ns>}' the namespace
    ARGV[1]   request id: a call repeated with it gets the first call's answer and changes nothing
    ARGV[2]   for how many milliseconds that answer is kept
    ARGV[3]   '1' if bookings fade, else '0'
    ARGV[4…]  for each worker two: its name; 'request' if a request to it failed, 'polls' if polls did: of a worker that
              has never answered one in this life, that tells nothing

  Output:
    an array with one entry a worker, in order; there may be fewer: then call again for the rest
      1   so it is
      0   there is no such live worker
      -1  with 'polls': it has never answered one, and stays where it is
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "alive"
--- @include "index_fading"
--- @include "index_lottery"
--- @include "index_static"
--- @include "key"
--- @include "load_of"
--- @include "now"
--- @include "spend"
--- @include "whole_number"
--- @include "write_load"
local reply = key("reply", ARGV[1])
local keep = whole_number(ARGV[2], 1)
local fades = ARGV[3] == "1"
if not keep or #ARGV < 5 or #ARGV % 2 == 0 then
  return redis.error_reply("INVALID arguments")
end
for i = 5, #ARGV, 2 do
  if ARGV[i] ~= "request" and ARGV[i] ~= "polls" then
    return redis.error_reply("INVALID failure")
  end
end
local answered = redis.call("GET", reply)
if answered then
  return cjson.decode(answered)
end
local time = fades and now()

local function set_failing(name, why)
  local load = load_of(name, time)
  if not load or not alive(name) then
    return 0
  end
  if why == "polls" and redis.call("HGET", load.worker, "polled") ~= "1" then
    return -1
  end
  load.failing = load.failing == "request" and "request" or why -- which an answer to a poll does not forgive
  write_load(load)
  index_static(load, fades)
  index_fading(load, time)
  index_lottery(load)
  return 1
end

local answers = {}
for i = 4, #ARGV, 2 do
  answers[#answers + 1] = set_failing(ARGV[i], ARGV[i + 1])
  if spend(0) then
    break
  end
end
redis.call("SET", reply, cjson.encode(answers), "PX", keep)
return answers
