--[[
  Takes a duty back from the replica that had it (take_duty.lua), and remembers what it tells of it.

  Input:
    KEYS[1]  '{<ns>}' the namespace
    ARGV[1]  the duty
    ARGV[2]  the replica's id
    ARGV[3]  in how many milliseconds it is due again
    ARGV[4]  what the replica tells; '' if the duty was not done
    ARGV[5]  for how many milliseconds that is remembered

  Output:
    1  it is taken back
    0  its time was over: another has it, maybe; nothing was done
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "key"
--- @include "whole_number"
local duty = key("duty", ARGV[1])
local due_in = whole_number(ARGV[3], 1)
local remember = whole_number(ARGV[5], 1)
if not due_in or not remember then
  return redis.error_reply("INVALID time")
end
if redis.call("GET", duty) ~= ARGV[2] then
  return 0
end
redis.call("SET", duty, "", "PX", due_in)
if ARGV[4] == "" then
  redis.call("DEL", key("told", ARGV[1]))
else
  redis.call("SET", key("told", ARGV[1]), ARGV[4], "PX", remember)
end
return 1
