--[[
  Takes a worker out of the indexes of pools. Where it was the last of a pool, the pool's models forget the pool, and a
  model without a pool is no model any more. What was learned of a pool is kept for an hour: include/learn.lua, when a
  worker is in it again, keeps it for good.

  Input:
    name    the worker's name
    place   the turn in its member of the first index
    pools   the names of the pools
    models  the names of its models

  Output: how much work that was, in units of include/spend.lua.
]]
--- @include "forget_pool"
--- @include "key"
--- @include "leave_lottery"
--- @include "member"
--- @include "note_front"
local function leave_pools(name, place, pools, models)
  local work = 1
  for _, pool in ipairs(pools) do
    local index = key("model", pool)
    redis.call("ZREM", index, member(place, name))
    redis.call("ZREM", key("fading", pool), name)
    leave_lottery(pool, name)
    note_front("model", pool)
    note_front("fading", pool)
    work = work + 3
    if redis.call("EXISTS", index) == 0 then
      redis.call("DEL", key("fading", pool))
      note_front("fading", pool)
      redis.call("PEXPIRE", key("fade", pool), 3600000)
      local of_set = pool:sub(1, 1) == "\30"
      for _, model in ipairs(of_set and models or { (pool:gsub("^\31", "")) }) do
        forget_pool(pool, model)
        work = work + 2
      end
    end
  end
  return work
end
