--[[
  Return the checkpoints of a worker without some of the older ones.

  All checkpoints of the last 8 intervals stay. An older one is deleted if the time between its two neighbours is at
  most the age of the younger neighbour. So a time is known less exactly the longer ago it is. Of the checkpoints that
  are older than 32 s, only the first one stays: all unacknowledged leases were granted after it.

  Input:
    checkpoints  as include/load/add_checkpoint.lua describes them
    time         the time

  Output: the checkpoints that stay; fewer than 24, if there were 24.
]]
local SIZE = 36 -- characters
local RECENT, OLDEST = 8 * 50, 32000 -- milliseconds

local function thin_checkpoints(checkpoints, time)
  local function age_at(position)
    return time - checkpoints:sub(position, position + 12)
  end
  local last = #checkpoints - SIZE + 1
  local kept, younger = checkpoints:sub(last), last
  for position = last - SIZE, 1, -SIZE do
    local age, is_needed = age_at(position), position == 1
    if not is_needed and age <= OLDEST then
      is_needed = age <= RECENT or age_at(position - SIZE) > 2 * age_at(younger)
    end
    if is_needed then
      kept, younger = checkpoints:sub(position, position + SIZE - 1) .. kept, position
    end
  end
  return kept
end
