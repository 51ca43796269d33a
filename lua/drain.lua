--[[
  Lets workers drain: such a worker gets no new request, but is listed and sends heartbeats as before. Or lets them
  serve again.

  Input:
    KEYS[1]   '{<ns>}' the namespace
    ARGV[1]   request id: a call repeated with it gets the first call's answer and changes nothing
    ARGV[2]   for how many milliseconds that answer is kept
    ARGV[3]   '1' if bookings fade, else '0'
    ARGV[4…]  for each worker two: its name; '1' to drain, '0' to resume

  Output:
    an array with one entry a worker, in order; there may be fewer: then call again for the rest
      1  so it is
      0  there is no such live worker
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "alive"
--- @include "clock_of"
--- @include "forget"
--- @include "index_fading"
--- @include "index_lottery"
--- @include "index_static"
--- @include "join_pools"
--- @include "key"
--- @include "learn"
--- @include "leave_pools"
--- @include "leave_rest"
--- @include "load_of"
--- @include "now"
--- @include "phase"
--- @include "spend"
--- @include "whole_number"
--- @include "write_load"
local reply = key("reply", ARGV[1])
local keep = whole_number(ARGV[2], 1)
local fades = ARGV[3] == "1"
if not keep or #ARGV < 5 or #ARGV % 2 == 0 then
  return redis.error_reply("INVALID arguments")
end
local answered = redis.call("GET", reply)
if answered then
  return cjson.decode(answered)
end
local time = now()

local function set_draining(name, drain)
  local load = load_of(name, fades and time)
  local lives = load and alive(name)
  if not drain then
    if not lives then
      forget(name) -- or what is left of it would tell its next life to drain
    end
    redis.call("DEL", key("draining", name))
  end
  if not lives then
    return 0
  end
  if drain == (load.draining or false) then
    return 1
  end

  redis.call("INCR", key("sequence")) -- so that replicas notice when the store loses this
  load.draining = drain
  local models = cjson.decode(redis.call("HGET", load.worker, "models"))
  local clock = clock_of(load.pools)
  if drain then
    spend(leave_pools(name, load.place, load.pools, models))
    leave_rest(name)
  else
    join_pools(load, models)
    if fades and clock then
      learn(clock, time, load.speed, 0, 0) -- so that its phase has begun
      local _, _, phase_text = phase(clock, time)
      load.phase = phase_text
    end
  end
  write_load(load)
  index_static(load, fades)
  index_fading(load, fades and time)
  index_lottery(load)
  return 1
end

local answers = {}
for i = 4, #ARGV, 2 do
  answers[#answers + 1] = set_draining(ARGV[i], ARGV[i + 1] == "1")
  if spend(0) then
    break
  end
end
redis.call("SET", reply, cjson.encode(answers), "PX", keep)
return answers
