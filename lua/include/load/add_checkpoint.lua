--[[
  Add a checkpoint to a worker, so that a report can tell which requests the worker has received.

  A worker keeps its last 8 checkpoints, and none that is older than 8 intervals or from before the clock of Redis was
  set back. A report acknowledges the requests before the oldest checkpoint.

  Input:
    load  as include/load/read_load.lua returns it
    time  the time

  Output: nothing. load.checkpoint_at is changed; the caller writes it.
]]
--- @include "checkpoint"
--- @include "key"
local function add_checkpoint(load, time)
  local age = time - load.checkpoint_at
  local checkpoints = key("checkpoints", load.name)
  if age < 0 or age >= 8 * 50 then
    redis.call("DEL", checkpoints)
  end
  if redis.call("RPUSH", checkpoints, checkpoint(time, load.dispatched, load.leased_since_report)) > 8 then
    redis.call("LPOP", checkpoints)
  end
  load.checkpoint_at = time
end
