--[[
  Remove a worker from the lottery of one pool.

  Input:
    pool  the name of the pool
    name  the worker's name
]]
--- @include "key"
local function leave_lottery(pool, name)
  if redis.call("ZREM", key("lottery", pool), name) == 1 then
    redis.call("DEL", key("odds", pool))
  else
    redis.call("ZREM", key("lottery_failing", pool), name)
  end
end
