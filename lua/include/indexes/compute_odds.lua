--[[
  Split a lottery, which is sorted by speed, into bands. Each band holds the workers with more than half the speed of
  its fastest worker. Even the largest ratio of valid speeds, 1e15, needs no more than 50 bands.
  The reference model is speed_bands() in tests/model/lottery.py.

  The result for `lottery` is cached in odds:<pool> until update_lottery.lua or leave_lottery.lua changes the index.

  Input:
    index  the key of the index
    pool   the name of the pool
    cache  true if the result is to be cached

  Output: '' if the index is empty. Otherwise numbers with a space between them: the weight of all bands, then for each
  band, fastest first, the speed of its fastest worker, the position of its slowest worker, and the number of its
  workers. The weight of a band is the speed of its fastest worker times the number of its workers.
]]
--- @include "key"
--- @include "spend"
local function compute_odds(index, pool, cache)
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
    spend(2)
  end
  local odds = string.format("%.17g", weight) .. bands
  if cache then
    redis.call("SET", key("odds", pool), odds)
  end
  return odds
end
