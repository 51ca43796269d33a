--[[
  Takes a worker out of the indexes of one model, and the model out of the models when it was the last. What was learned
  of the model is kept for an hour: include/learn.lua, when a worker serves it again, keeps it for good.

  Input:
    model         the model's name
    index_member  the worker's member in the index (include/member.lua)
    name          the worker's name
]]
--- @include "key"
--- @include "leave_lottery"
local function unindex(model, index_member, name)
  local index = key("model", model)
  redis.call("ZREM", index, index_member)
  redis.call("ZREM", key("fading", model), name)
  leave_lottery(model, name)
  if redis.call("EXISTS", index) == 0 then
    redis.call("DEL", key("fading", model))
    redis.call("PEXPIRE", key("fade", model), 3600000)
    redis.call("SREM", key("models"), model)
  end
end
