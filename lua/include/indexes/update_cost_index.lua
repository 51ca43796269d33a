--[[
  Put a worker into the cost index of each of its pools, which is sorted by the part of its cost that does not change
  while time passes.

  If bookings do not decay, that part is the whole cost. For a worker with a capacity it is the whole cost as of now,
  because only the untracked load decides whether a slot is free. A draining worker is in no index.

  Input:
    load           as include/load/read_load.lua returns it
    decays         true if bookings decay
    old_index_seq  the sequence number in the worker's member until now, if the member changes; otherwise nil
]]
--- @include "cost_of"
--- @include "index_member"
--- @include "key"
--- @include "spend"
--- @include "update_head"
local function update_cost_index(load, decays, old_index_seq)
  if load.draining then
    return
  end
  local is_whole = load.capacity or not decays
  local cost = is_whole and cost_of(load, load.untracked, load.untracked_own_rate) or cost_of(load, 0, 0)
  local member = index_member(load.index_seq, load.name)
  local old_member = old_index_seq and index_member(old_index_seq, load.name)
  spend(#load.pools)
  for _, pool in ipairs(load.pools) do
    local index = key("cost_index", pool)
    if old_member then
      redis.call("ZREM", index, old_member)
    end
    redis.call("ZADD", index, cost, member)
    update_head("cost_index", pool)
  end
end
