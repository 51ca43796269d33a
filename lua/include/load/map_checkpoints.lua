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
  local checkpoints = redis.call("GET", key("checkpoints", name))
  if not checkpoints then
    return
  end
  local changed = checkpoints:gsub("(%d+):(%d+):(%d+);", function(at, dispatched, leased)
    at = tonumber(at)
    dispatched, leased = change(at, tonumber(dispatched), tonumber(leased))
    return dispatched and checkpoint(at, dispatched, leased) or ""
  end)
  if changed == "" then
    redis.call("DEL", key("checkpoints", name))
  elseif changed ~= checkpoints then
    redis.call("SET", key("checkpoints", name), changed)
  end
end
