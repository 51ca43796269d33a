--[[
  Remove a worker from the indexes of pools, and delete the pools that are empty then. What was learned of a pool is
  kept for an hour. include/decay/learn_decay.lua keeps it for good if a worker joins the pool again.

  Input:
    name       the worker's name
    index_seq  the sequence number in its member of the cost index
    pools      the names of the pools
    models     the names of its models

  Output: the amount of work, in units of include/spend.lua.
]]
--- @include "delete_pool"
--- @include "index_member"
--- @include "key"
--- @include "leave_lottery"
--- @include "update_head"
local function leave_pools(name, index_seq, pools, models)
  local work = 1
  for _, pool in ipairs(pools) do
    local index = key("cost_index", pool)
    redis.call("ZREM", index, index_member(index_seq, name))
    redis.call("ZREM", key("decay_index", pool), name)
    leave_lottery(pool, name)
    update_head("cost_index", pool)
    update_head("decay_index", pool)
    work = work + 3
    if redis.call("EXISTS", index) == 0 then
      redis.call("DEL", key("decay_index", pool))
      update_head("decay_index", pool)
      redis.call("PEXPIRE", key("decay", pool), 3600000)
      local is_set = pool:byte() == 30
      for _, model in ipairs(is_set and models or { (pool:gsub("^\31", "")) }) do
        delete_pool(pool, model)
        work = work + 2
      end
    end
  end
  return work
end
