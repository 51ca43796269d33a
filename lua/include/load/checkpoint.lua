--[[
  Return a checkpoint as text: how many requests were dispatched to a worker since its last report, before a time.

  checkpoints:<name> is the list of the checkpoints of a worker, the oldest first. They are no field of its hash,
  because Redis stores a hash less compactly, and reads it more slowly, if a field has more than 64 bytes.

  Input:
    at          the time
    dispatched  requests without a lease
    leased      requests with a lease that is active

  Output: '<at>:<dispatched>:<leased>'
]]
local function checkpoint(at, dispatched, leased)
  return string.format("%.0f:%.0f:%.0f", at, dispatched, leased)
end
