--[[
  Clear the failure of a worker that has answered a poll or a probe. If the worker sends heartbeats, only its next
  heartbeat clears the failure of a request.

  Input:
    load  as include/load/read_load.lua returns it
]]
local function clear_failure(load)
  if load.failing == "polls" or (load.failing and redis.call("HGET", load.worker, "check_heart_beat") == "0") then
    load.failing = nil
  end
end
