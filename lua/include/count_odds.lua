--[[
  Splits a lottery index, which is sorted by speed, into bands: each holds the workers with more than half the speed of
  its fastest worker. Even the largest allowed ratio of speeds, 1e15, needs no more than 50 bands.
  The rule in Python: controller/domain/dispatch.py, speed_bands().

  The result for 'lottery' is cached in 'odds' until index_lottery.lua or leave_lottery.lua changes the index.

  Input:
    kind   'lottery' or 'lottery_failing'
    pool   the pool's name

  Output: '' if the index is empty, otherwise numbers with a space between them: the weight of all bands, then for each
  band, fastest first, the speed of its fastest worker, the place of its slowest worker, and how many workers it holds.
  A band's weight is the speed of its fastest worker times the number of workers.
]]
--- @include "key"
local function count_odds(kind, pool)
  local index = key(kind, pool)
  local left = redis.call("ZCARD", index)
  if left == 0 then
    return ""
  end
  local weight, bands = 0, ""
  while left > 0 do
    local top = redis.call("ZRANGE", index, left - 1, left - 1, "WITHSCORES")[2]
    local first = redis.call("ZCOUNT", index, "-inf", string.format("%.17g", top / 2))
    weight = weight + (left - first) * top
    bands = bands .. " " .. top .. " " .. first .. " " .. left - first
    left = first
  end
  local odds = string.format("%.17g", weight) .. bands
  if kind == "lottery" then
    redis.call("SET", key("odds", pool), odds)
  end
  return odds
end
