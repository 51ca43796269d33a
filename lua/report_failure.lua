--[[
  Puts a worker behind all others, because it failed: until its next heartbeat, or, where it failed to answer polls,
  until it answers one.

  Input:
    KEYS[1]  '{<ns>}' the namespace
    ARGV[1]  the worker's name
    ARGV[2]  'request' if a request to it failed, 'polls' if polls did: of a worker that has never answered one in this
             life, that tells nothing
    ARGV[3]  '1' if bookings fade, else '0'

  Output:
    1   so it is
    0   there is no such live worker
    -1  with 'polls': it has never answered one, and stays where it is
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "alive"
--- @include "index_fading"
--- @include "index_static"
--- @include "load_of"
--- @include "now"
--- @include "write_load"
local name = ARGV[1]
local why = ARGV[2]
local fades = ARGV[3] == "1"
if why ~= "request" and why ~= "polls" then
  return redis.error_reply("INVALID failure")
end

local time = fades and now()
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
return 1
