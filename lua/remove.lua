--[[
  Removes a worker, dead or alive, and every trace of it.

  Input:
    KEYS[1]  '{<ns>}' the namespace
    ARGV[1]  the worker's name
    ARGV[2]  do it only if this is still the worker's registration; '' to do it in any case

  Output:
    1  a live worker was removed
    0  there was no such live worker (with ARGV[2]: it has registered again or is gone)
]]
--- @include "alive"
--- @include "forget"
--- @include "key"
local name = ARGV[1]
local expected_registration = ARGV[2]

if expected_registration ~= "" then
  if redis.call("HGET", key("worker", name), "registration") ~= expected_registration then
    return 0
  end
end

local was_alive = alive(name)
forget(name)
return was_alive and 1 or 0
