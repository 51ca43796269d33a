--[[
  Return the checkpoints of a worker without some of the older ones.

  All checkpoints of the last 8 intervals stay. An older one is deleted if the time between its two neighbours is at
  most the age of the younger neighbour. So a time is known less exactly the longer ago it is. Of the checkpoints that
  are older than 32 s, only the first one stays: all unacknowledged leases were granted after it.

  Input:
    checkpoints  as include/load/add_checkpoint.lua describes them
    time         the time

  Output: the checkpoints that stay. They are fewer than 24 if there were 24.
]]
--- @include "constants"
local OLDEST = 32000 -- milliseconds

local function thin_checkpoints(checkpoints, time)
  local function age_at(position)
    return time - checkpoints:sub(position, position + 12)
  end
  local last = #checkpoints - CHECKPOINT_SIZE + 1
  local kept, younger = checkpoints:sub(last), last
  for position = last - CHECKPOINT_SIZE, 1, -CHECKPOINT_SIZE do
    local age, is_needed = age_at(position), position == 1
    if not is_needed and age <= OLDEST then
      is_needed = age <= RECENT_MS or age_at(position - CHECKPOINT_SIZE) > 2 * age_at(younger)
    end
    if is_needed then
      kept, younger = checkpoints:sub(position, position + CHECKPOINT_SIZE - 1) .. kept, position
    end
  end
  return kept
end
