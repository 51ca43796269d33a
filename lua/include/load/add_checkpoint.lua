--[[
  Add a checkpoint to a worker, so that a report can tell which requests the worker has received. A checkpoint has the
  number of requests dispatched to the worker from its last report up to a time.

  A worker keeps its last 8 checkpoints, and none that is older than 8 intervals or from before the clock of Redis was
  set back. A report acknowledges the requests before the oldest checkpoint.

  Written to checkpoints:<name>, the oldest first: '<at>:<dispatched>:<leased>;' for each checkpoint.
    at          the time
    dispatched  requests without a lease
    leased      requests with a lease that is active
  All have 36 characters. So the last 8 can be read without the others, which are deleted only when there are 16. They
  are no field of the hash, because Redis stores a hash less compactly, and reads it more slowly, if a field has more
  than 64 bytes.

  Input:
    load  as include/load/read_load.lua returns it
    time  the time

  Output: nothing. load.checkpoint_at is changed; the caller writes it.
]]
--- @include "key"
local function add_checkpoint(load, time)
  local age = time - load.checkpoint_at
  local checkpoints = key("checkpoints", load.name)
  local new = string.format("%013d:%010d:%010d;", time, load.dispatched, load.leased_since_report)
  if age < 0 or age >= 8 * 50 then
    redis.call("SET", checkpoints, new)
  elseif redis.call("APPEND", checkpoints, new) >= 16 * 36 then
    redis.call("SET", checkpoints, redis.call("GETRANGE", checkpoints, -8 * 36, -1))
  end
  load.checkpoint_at = time
end
