--[[
  Remove a worker from the indexes of pools, and delete the pools that are empty then. What was learned of a pool is
  kept for an hour. include/decay/learn_decay.lua keeps it for good if a worker joins the pool again.

  Input:
    name       the worker's name
    index_seq  the sequence number in its member of the cost index
    pools      the names of the pools
    models     the names of its models

  Output: the amount of work, in units of include/spend.lua, and an array of the models that have no worker any more.
]]
--- @include "delete_pools" when called
--- @include "index_member"
--- @include "key"
--- @include "leave_lottery"
--- @include "models_of_pool" when called
--- @include "update_head"
local function leave_pools(name, index_seq, pools, models)
  local work, member = 1, index_member(index_seq, name)
  local empty, names = {}, {} -- the pools that are empty now, once for each of their models
  for _, pool in ipairs(pools) do
    local index = key("cost_index", pool)
    redis.call("ZREM", index, member)
    work = work + 3
    if redis.call("EXISTS", index) == 1 then
      redis.call("ZREM", key("decay_index", pool), name)
      leave_lottery(pool, name)
    else
      redis.call("DEL", key("decay_index", pool), key("lottery", pool), key("lottery_failing", pool), key("odds", pool))
      if pool:byte() ~= 31 then -- overflow pools have no decay clock of their own
        redis.call("PEXPIRE", key("decay", pool), 3600000)
      end
      for _, model in ipairs(models_of_pool(pool, models)) do
        empty[#empty + 1], names[#names + 1] = pool, model
      end
    end
    update_head("cost_index", pool)
    update_head("decay_index", pool)
  end
  return work + 2 * #empty, empty[1] and delete_pools(empty, names) or {}
end
