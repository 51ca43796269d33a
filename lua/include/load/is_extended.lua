--[[
  Return true if a worker has a capacity, a failure, or drains. include/load/read_load.lua reads the fields for these
  only then, which keeps dispatches to all other workers fast.

  Input:
    load  as include/load/read_load.lua returns it
]]
local function is_extended(load)
  return load.capacity or load.failing or load.draining
end
