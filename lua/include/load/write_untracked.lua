--[[
  Write the untracked load of a worker with a capacity. The caller then updates the score of the worker in the cost
  index for the same time, load.decayed_at.

  Input:
    load  as include/load/read_load.lua returns it

  Output: nothing.
]]
local function write_untracked(load)
  redis.call("HSET", load.worker,
    "untracked", load.untracked,
    "untracked_own_rate", load.untracked_own_rate,
    "decayed_at", load.decayed_at)
end
