--[[
  Removes workers, dead or alive, and every trace of them.

  Input:
    KEYS[1]   '{<ns>}' the namespace
    ARGV[1]   request id: a call repeated with it gets the first call's answer and removes nothing
    ARGV[2]   for how many milliseconds that answer is kept
    ARGV[3]   for how many milliseconds it is remembered that a worker was removed, so that it is not restored from a
              snapshot
    ARGV[4…]  for each worker two: its name; '' to remove it in any case and to forget that it drained, or the number of
              a registration: only if that is still the worker's

  Output:
    an array with one entry a worker, in order; there may be fewer: then call again for the rest
      1  a live worker was removed
      0  there was no such live worker, or it has registered again
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "alive"
--- @include "forget"
--- @include "key"
--- @include "spend"
--- @include "whole_number"
local reply = key("reply", ARGV[1])
local keep = whole_number(ARGV[2], 1)
local remember = whole_number(ARGV[3], 1)
if not keep or not remember or #ARGV < 5 or #ARGV % 2 == 0 then
  return redis.error_reply("INVALID arguments")
end
local answered = redis.call("GET", reply)
if answered then -- the worker may have registered again since
  return cjson.decode(answered)
end

local function remove(name, expected_registration)
  local registration = redis.call("HGET", key("worker", name), "registration")
  if expected_registration ~= "" and registration ~= expected_registration then
    return 0
  end
  local was_alive = alive(name)
  spend(forget(name)) -- first: a full store refuses what follows, but not what makes room
  if expected_registration == "" then
    redis.call("DEL", key("draining", name))
  end
  if was_alive then
    redis.call("SET", key("removed", name), "1", "PX", remember)
    redis.call("INCR", key("sequence")) -- so that replicas notice when the store loses this
  end
  return was_alive and 1 or 0
end

local answers = {}
for i = 4, #ARGV, 2 do
  answers[#answers + 1] = remove(ARGV[i], ARGV[i + 1])
  if spend(0) then
    break
  end
end
redis.pcall("SET", reply, cjson.encode(answers), "PX", keep) -- a full store may refuse
return answers
