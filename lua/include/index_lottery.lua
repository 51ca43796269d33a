--[[
  Adds a worker to the lottery of each of its pools: to 'lottery' if it serves, to 'lottery_failing' if it fails. Moves
  it if it stands in the other one. A draining worker is in neither.

  Both are sorted by speed. A draw keeps no state, so a worker that is moved, or registers often, keeps its odds.

  Input:
    load  as include/load_of.lua gives it
]]
--- @include "key"
local function index_lottery(load)
  if load.draining then
    return
  end
  local joined, left = "lottery", "lottery_failing"
  if load.failing then
    joined, left = left, joined
  end
  for _, pool in ipairs(load.pools) do
    local changed = redis.call("ZADD", key(joined, pool), "CH", load.speed, load.name)
      + redis.call("ZREM", key(left, pool), load.name)
    if changed > 0 then
      redis.call("DEL", key("odds", pool))
    end
  end
end
