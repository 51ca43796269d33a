--[[
  Removes a worker, dead or alive, and every trace of it.

  Input:
    KEYS[1]  '{<ns>}' the namespace
    ARGV[1]  the worker's name
    ARGV[2]  do it only if this is still the worker's registration; '' to do it in any case, and to forget
             that it drained
    ARGV[3]  for how many milliseconds it is remembered that it was removed: nobody restores it from old knowledge

  Output:
    1  a live worker was removed
    0  there was no such live worker (with ARGV[2]: it has registered again or is gone)
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "alive"
--- @include "forget"
--- @include "key"
--- @include "whole_number"
local name = ARGV[1]
local expected_registration = ARGV[2]
local keep = whole_number(ARGV[3], 1)
if not keep then
  return redis.error_reply("INVALID time")
end

if expected_registration ~= "" then
  if redis.call("HGET", key("worker", name), "registration") ~= expected_registration then
    return 0
  end
end

local was_alive = alive(name)
forget(name) -- first: a full store refuses what follows, but not what makes room
if expected_registration == "" then
  redis.call("DEL", key("draining", name))
end
if was_alive then
  redis.call("SET", key("removed", name), "1", "PX", keep)
  redis.call("INCR", key("sequence")) -- so that replicas notice when the store loses this
end
return was_alive and 1 or 0
