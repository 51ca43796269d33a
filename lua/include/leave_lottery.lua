--[[
  Removes a worker from the lottery of one model.

  Input:
    model  the model's name
    name   the worker's name
]]
--- @include "key"
local function leave_lottery(model, name)
  if redis.call("ZREM", key("lottery", model), name) == 1 then
    redis.call("DEL", key("odds", model))
  else
    redis.call("ZREM", key("lottery_failing", model), name)
  end
end
