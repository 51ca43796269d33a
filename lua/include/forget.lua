--[[
  Removes every trace of a worker, whether it is known or not. That it was draining is remembered for an hour.

  Output: how much work that was, 1 and 1 for each of its models.
]]
--- @include "key"
--- @include "member"
--- @include "unindex"
local function forget(name)
  local work = 1
  local fields = redis.call("HMGET", key("worker", name), "models", "load")
  if fields[1] then
    local place, more = fields[2]:match("^%S+ %S+ %S+ %S+ (%S+) %S+ %S+ %S+ ?(.*)")
    local index_member = member(place, name)
    for _, model in ipairs(cjson.decode(fields[1])) do
      unindex(model, index_member, name)
      work = work + 1
    end
    if more:match("1$") then -- it drains
      redis.pcall("SET", key("draining", name), "1", "PX", 3600000) -- a full store may refuse
    end
  end
  redis.call("DEL", key("worker", name), key("heartbeat", name))
  redis.call("ZREM", key("workers"), name)
  return work
end
