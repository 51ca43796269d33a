--[[
  Puts a worker where it belongs in the second index of each of its pools: by what fades of its load, as the logarithm
  of that plus the phase, so that the order stays while time passes. In millionths, because the store is quicker to
  compare whole numbers. A draining worker is in no index.

  The scores have bands that no allowed value leaves:
    -2^53 to -1e9   nothing that fades, by turn. A turn is 2^53 at most
    -8e8 to 2^53    something that fades. A phase is 0 at least and starts again at 4e9 (include/learn.lua); it gets to
                    9e9 only if there is no report for 3 years
    from 2^53 on    failing: the same, plus 2^54. Here the order is exact to 4, and the first 8 are compared by cost

  Input:
    load  as include/load_of.lua gives it
    time  the time; nil or false where bookings do not fade
]]
--- @include "key"
--- @include "note_front"
--- @include "spend"
local function index_fading(load, time)
  if load.draining then
    return
  end
  local score = math.min(load.turn - 9007199254740992, -1e9)
  if time and load.unleased > 0 then
    score = math.floor(1e6 * (math.log(load.unleased / load.speed) + load.phase))
  end
  if load.failing then
    score = score + 18014398509481984
  end
  spend(#load.pools)
  for _, pool in ipairs(load.pools) do
    redis.call("ZADD", key("fading", pool), score, load.name)
    note_front("fading", pool)
  end
end
