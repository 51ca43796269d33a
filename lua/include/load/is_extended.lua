--[[
  Return true if a worker has a capacity, a failure, or drains. Only then include/load/read_load.lua reads the fields
  for these, which keeps the dispatch to all other workers fast.

  Input:
    load  as include/load/read_load.lua returns it
]]
local function is_extended(load)
  return load.capacity or load.failing or load.draining
end
