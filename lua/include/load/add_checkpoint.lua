--[[
  Add a checkpoint to a worker, so that a report can tell which requests the worker has received. A checkpoint has the
  number of requests dispatched to the worker from its last report up to a time.

  A checkpoint is added at most every 50 ms (include/load/book.lua). When there are 24, older ones are deleted. The last
  8 stay: they span at least 350 ms, the longest `--booking-delay`. The reports of engines may be older than that. So
  while a lease is unacknowledged, some of the older checkpoints stay too (include/load/thin_checkpoints.lua).

  All earlier checkpoints are deleted if the last one is in the future, because the clock of Redis was set back. The
  same holds if the last one is 400 ms old or older, and no lease is unacknowledged.

  Written to checkpoints:<name>, the oldest first: '<at>:<dispatched>:<leased>;' for each checkpoint.
    at          the time
    dispatched  requests without a lease
    leased      requests with a lease that is active
  All have 36 characters. They are no field of the hash, because Redis stores a hash less compactly, and reads it more
  slowly, if a field has more than 64 bytes. The reference model is Load._add_checkpoint() in tests/model/load.py.

  Input:
    load  as include/load/read_load.lua returns it
    time  the time

  Output: nothing. It changes load.checkpoint_at, which the caller writes.
]]
--- @include "constants"
--- @include "key"
--- @include "thin_checkpoints" when called
local MAX_NUMBER = 24

local function add_checkpoint(load, time)
  local age, has_leases = time - load.checkpoint_at, load.leased_since_report > 0
  local checkpoints = key("checkpoints", load.name)
  local new = string.format("%013d:%010d:%010d;", time, load.dispatched, load.leased_since_report)
  if age < 0 or (age >= RECENT_MS and not has_leases) then
    redis.call("SET", checkpoints, new)
  elseif redis.call("APPEND", checkpoints, new) >= MAX_NUMBER * CHECKPOINT_SIZE then
    local kept = has_leases and thin_checkpoints(redis.call("GET", checkpoints), time)
    redis.call("SET", checkpoints, kept or redis.call("GETRANGE", checkpoints, -RECENT_SIZE, -1))
  end
  load.checkpoint_at = time
end
