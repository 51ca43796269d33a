--[[
  Write the untracked load of a worker with a capacity, as of now. The caller then updates its score in the cost
  index, which must be as of the same time.

  Input:
    load  as include/load/read_load.lua returns it
]]
local function write_untracked(load)
  redis.call("HSET", load.worker,
    "untracked", load.untracked,
    "untracked_own_rate", load.untracked_own_rate,
    "decayed_at", load.decayed_at)
end
