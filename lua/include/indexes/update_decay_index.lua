--[[
  Put a worker into the decay index of each of its pools, which is sorted by its untracked load.

  The score is the logarithm of the untracked load per unit of speed plus the reading of the decay clock, in millionths,
  because Redis compares whole numbers faster. This order stays as it is while time passes. A draining worker is in no
  index.

  The scores have bands that no valid value leaves:
    -2^53 to -1e9   no untracked load: by sequence number, which is 2^53 at most
    -8e8 to 2^53    untracked load. A decay clock starts at 0 and starts again at 4e9 (include/decay/learn_decay.lua).
                    It reaches 9e9 only if no report comes for 3 years
    from 2^53 on    failing workers: the same plus 2^54. The order is exact to 4, and the first 8 are compared by cost

  Input:
    load  as include/load/read_load.lua returns it
    time  the time; nil or false if bookings do not decay
]]
--- @include "constants"
--- @include "key"
--- @include "spend"
--- @include "update_head"
local function update_decay_index(load, time)
  if load.draining then
    return
  end
  local score = math.min(load.seq - MAX_WHOLE_NUMBER, MAX_WITHOUT_LOAD)
  if time and load.untracked > 0 then
    score = math.floor(1e6 * (math.log(load.untracked / load.speed) + load.decayed_at))
  end
  if load.failing then
    score = score + FAILING_OFFSET
  end
  spend(#load.pools)
  for _, pool in ipairs(load.pools) do
    redis.call("ZADD", key("decay_index", pool), score, load.name)
    update_head("decay_index", pool)
  end
end
