--[[
  Release the lock of a singleton job, and keep the result of the run.

  Keys:
    job:<job>         STRING  rw
    job_result:<job>  STRING  w

  Input:
    KEYS[1]  {<namespace>}
    ARGV[1]  job: the name of the job
    ARGV[2]  replica: the id of the replica
    ARGV[3]  due_in: the milliseconds until the job is due again
    ARGV[4]  result: the result of the run; '' if the job was not done
    ARGV[5]  result_ttl: the milliseconds for which the result is kept

  Output:
    1  the lock is released: no replica gets it before the job is due, unless its call is urgent
    0  the lock had expired, and another replica may have it: nothing was done
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "key"
--- @include "whole_number"
local job, replica, due_in, result = ARGV[1], ARGV[2], whole_number(ARGV[3], 1), ARGV[4]
local result_ttl = whole_number(ARGV[5], 1)
if not due_in or not result_ttl then
  return redis.error_reply("INVALID time")
end

local lock = key("job", job)
if redis.call("GET", lock) ~= replica then
  return 0
end
redis.call("SET", lock, "", "PX", due_in)
if result == "" then
  redis.call("DEL", key("job_result", job))
else
  redis.call("SET", key("job_result", job), result, "PX", result_ttl)
end
return 1
