--[[
  Add a checkpoint to a worker, so that a report can tell which requests the worker has received.

  A worker keeps its last 8 checkpoints, and none that is older than 8 intervals or from before the clock of Redis was
  set back. A report acknowledges the requests before the oldest checkpoint.

  Input:
    load  as include/load/read_load.lua returns it
    time  the time
]]
--- @include "checkpoint"
--- @include "key"
local function add_checkpoint(load, time)
  local age = time - load.checkpoint_at
  local kept = ""
  if age >= 0 and age < 8 * 50 then
    kept = redis.call("GET", key("checkpoints", load.name)) or ""
    kept = kept:match("^[^;]+;([^;]+;[^;]+;[^;]+;[^;]+;[^;]+;[^;]+;[^;]+;)$") or kept -- the last 7 of 8
  end
  load.checkpoint_at = time
  redis.call("SET", key("checkpoints", load.name), kept .. checkpoint(time, load.dispatched, load.leased_since_report))
  redis.call("HSET", load.worker, "checkpoint_at", time)
end
