--[[
  Return a checkpoint as text: how many requests were dispatched to a worker since its last report, before a time.

  checkpoints:<name> holds the checkpoints of a worker, the oldest first. They have a key of their own, because Redis
  stores a hash less compactly, and reads it more slowly, if a field has more than 64 bytes.

  Input:
    at          the time
    dispatched  requests without a lease
    leased      requests with a lease that is active

  Output: '<at>:<dispatched>:<leased>;'
]]
local function checkpoint(at, dispatched, leased)
  return string.format("%.0f:%.0f:%.0f;", at, dispatched, leased)
end
