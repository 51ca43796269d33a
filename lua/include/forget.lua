--[[
  Removes every trace of a worker, whether it is known or not.
]]
--- @include "key"
--- @include "member"
--- @include "unindex"
local function forget(name)
  local fields = redis.call("HMGET", key("worker", name), "models", "turn")
  if fields[1] then
    for _, model in ipairs(cjson.decode(fields[1])) do
      unindex(model, member(fields[2], name), name)
    end
  end
  redis.call("DEL", key("worker", name), key("heartbeat", name))
  redis.call("ZREM", key("workers"), name)
end
