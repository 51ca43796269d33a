--[[
  Gives a replica a duty that one of all has to do now and then, such as a heartbeat to a parent: nobody else has it
  until the replica has told how it ended (end_duty.lua), or its time is over.

  Input:
    KEYS[1]  '{<ns>}' the namespace
    ARGV[1]  the duty
    ARGV[2]  the replica's id
    ARGV[3]  for how many milliseconds it has the duty
    ARGV[4]  '1' if it is to be done now, though it is not due yet, else '0'
    ARGV[5]  how many milliseconds can pass until it is due again, at most. If more are left, the clock of the store was
             set back, and it is due now

  Output:
    an array:
      [1]  1 if the replica has the duty; 0 if another has it, or it is not due
      [2]  what was told when it was done last; '' if it never was, or long ago
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "key"
--- @include "whole_number"
local duty = key("duty", ARGV[1])
local hold = whole_number(ARGV[3], 1)
local longest = whole_number(ARGV[5], 1)
if not hold or not longest then
  return redis.error_reply("INVALID time")
end
local told = redis.call("GET", key("told", ARGV[1])) or ""
local holder = redis.call("PTTL", duty) <= longest and redis.call("GET", duty)
local not_due = holder == "" and ARGV[4] ~= "1"
if holder and (not_due or (holder ~= "" and holder ~= ARGV[2])) then -- its own: the answer to its last call was lost
  return { 0, told }
end
redis.call("SET", duty, ARGV[2], "PX", hold)
return { 1, told }
