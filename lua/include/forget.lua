--[[
  Removes every trace of a worker, whether it is known or not.

  Output: how much work that was, 1 and 1 for each of its models.
]]
--- @include "key"
--- @include "member"
--- @include "unindex"
local function forget(name)
  local work = 1
  local fields = redis.call("HMGET", key("worker", name), "models", "turn")
  if fields[1] then
    for _, model in ipairs(cjson.decode(fields[1])) do
      unindex(model, member(fields[2], name), name)
      work = work + 1
    end
  end
  redis.call("DEL", key("worker", name), key("heartbeat", name))
  redis.call("ZREM", key("workers"), name)
  return work
end
