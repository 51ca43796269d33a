--[[
  Change the checkpoints of a worker.

  Input:
    name    the worker's name
    change  a function that gets the time and the two counts of a checkpoint, and returns the new counts, or nil to drop
            the checkpoint
]]
--- @include "checkpoint"
--- @include "key"
local function map_checkpoints(name, change)
  local checkpoints = key("checkpoints", name)
  local kept, is_changed = {}, false
  for _, old in ipairs(redis.call("LRANGE", checkpoints, 0, -1)) do
    local at, dispatched, leased = old:match("^(%d+):(%d+):(%d+)$")
    at = tonumber(at)
    dispatched, leased = change(at, tonumber(dispatched), tonumber(leased))
    local new = dispatched and checkpoint(at, dispatched, leased)
    kept[#kept + 1] = new or nil
    is_changed = is_changed or new ~= old
  end
  if is_changed then
    redis.call("DEL", checkpoints)
  end
  if is_changed and kept[1] then
    redis.call("RPUSH", checkpoints, unpack(kept))
  end
end
