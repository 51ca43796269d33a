--[[
  Put a worker into the lottery of each of its pools: into `lottery`, or into `lottery_failing` if it is failing. Move
  it if it is in the other one. A draining worker is in neither.

  Both are sorted by speed. A draw keeps no state, so a worker that is moved or registers often keeps its odds.

  Input:
    load  as include/load/read_load.lua returns it
]]
--- @include "key"
local function update_lottery(load)
  if load.draining then
    return
  end
  for _, pool in ipairs(load.pools) do
    local joined, left = key("lottery", pool), key("lottery_failing", pool)
    if load.failing then
      joined, left = left, joined
    end
    local changed = redis.call("ZADD", joined, "CH", load.speed, load.name) + redis.call("ZREM", left, load.name)
    if changed > 0 then
      redis.call("DEL", key("odds", pool))
    end
  end
end
