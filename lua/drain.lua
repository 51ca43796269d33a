--[[
  Lets a worker drain: it gets no new request, but is listed and sends heartbeats as before. Or lets it serve again.

  Input:
    KEYS[1]  '{<ns>}' the namespace
    ARGV[1]  the worker's name
    ARGV[2]  '1' to drain, '0' to resume
    ARGV[3]  '1' if bookings fade, else '0'
    ARGV[4]  a draw from the exponential distribution of mean 1, for its tickets in the lottery

  Output:
    1  so it is
    0  there is no such live worker
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "alive"
--- @include "finite"
--- @include "forget"
--- @include "index_fading"
--- @include "index_static"
--- @include "join_lottery"
--- @include "key"
--- @include "learn"
--- @include "load_of"
--- @include "member"
--- @include "now"
--- @include "phase"
--- @include "unindex"
--- @include "write_load"
local name = ARGV[1]
local drain = ARGV[2] == "1"
local fades = ARGV[3] == "1"
local draw = finite(ARGV[4])
if not draw then
  return redis.error_reply("INVALID draw")
end
local time = now()

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
for _, model in ipairs(load.models) do
  if drain then
    unindex(model, member(load.place, name), name)
  else
    redis.call("SADD", key("models"), model)
    if fades then
      learn(model, time, load.speed, 0, 0) -- so that its phase has begun
    end
    join_lottery(model, name, load.speed, draw)
  end
end
if fades and not drain then
  local _, _, phase_text = phase(load.models[1], time)
  load.phase = phase_text
end
write_load(load)
index_static(load, fades)
index_fading(load, fades and time)
return 1
