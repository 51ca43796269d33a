--[[
  A worker has answered us: it comes no more behind the others for having failed to, nor, if it sends no heartbeats that
  would tell of it, for failed requests.

  Input:
    load  as include/load_of.lua gives it
]]
local function forgive(load)
  if load.failing == "polls" or (load.failing and redis.call("HGET", load.worker, "check_heart_beat") == "0") then
    load.failing = nil
  end
end
