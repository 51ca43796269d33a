--[[
  Change the checkpoints of a worker, which include/load/add_checkpoint.lua describes.

  Input:
    name    the worker's name
    change  a function that gets the time and the two counts of a checkpoint, and returns the new counts, or nil to drop
            the checkpoint
]]
--- @include "key"
local function map_checkpoints(name, change)
  local checkpoints = key("checkpoints", name)
  local old = redis.call("GET", checkpoints) or ""
  if old == "" then
    return
  end
  local new = ""
  for at, dispatched, leased in old:gmatch("(%d+):(%d+):(%d+);") do
    dispatched, leased = change(tonumber(at), tonumber(dispatched), tonumber(leased))
    if dispatched then
      new = new .. string.format("%s:%010d:%010d;", at, dispatched, leased)
    end
  end
  if new == "" then
    redis.call("DEL", checkpoints)
  elseif new ~= old then
    redis.call("SET", checkpoints, new)
  end
end
