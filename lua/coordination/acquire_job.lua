--[[
  Try to acquire the lock of a singleton job, such as the heartbeat to a parent, for a replica.

  Keys:
    job:<job>         STRING  rw
    job_result:<job>  STRING  r

  Input:
    KEYS[1]  {<namespace>}
    ARGV[1]  job: the name of the job
    ARGV[2]  replica: the id of the replica
    ARGV[3]  ttl: the milliseconds after which the lock expires
    ARGV[4]  urgent: '1' to acquire the lock even if the job is not due, otherwise '0'
    ARGV[5]  max_pause: the longest pause between two runs of the job in milliseconds. A longer one shows that the clock
               of Redis was set back, and is ignored

  Output:
    an array:
      [1]  1 if the replica has the lock; 0 if another one has it, or the job is not due
      [2]  the result of the last run; '' if there was none, or it has expired
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "key"
--- @include "whole_number"
local job, replica, ttl, is_urgent = ARGV[1], ARGV[2], whole_number(ARGV[3], 1), ARGV[4] == "1"
local max_pause = whole_number(ARGV[5], 1)
if not ttl or not max_pause then
  return redis.error_reply("INVALID time")
end

local lock = key("job", job)
local result = redis.call("GET", key("job_result", job)) or ""
local holder = redis.call("PTTL", lock) <= max_pause and redis.call("GET", lock) -- '': the job is not due
local is_not_due = holder == "" and not is_urgent
local has_other_holder = holder and holder ~= "" and holder ~= replica -- its own call is repeated if a reply was lost
if is_not_due or has_other_holder then
  return { 0, result }
end
redis.call("SET", lock, replica, "PX", ttl)
return { 1, result }
