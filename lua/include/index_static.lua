--[[
  Puts a worker where it belongs in the first index of each of its pools: by the part of its cost that stays as it is
  while time passes. Where bookings do not fade, that is all of it; where it tells a capacity, it is all of it as it is
  now, for only with what fades there is a question whether a slot is free. A worker that drains is in no index.

  Input:
    load       as include/load_of.lua gives it
    fades      whether bookings fade
    old_place  the turn in its member until now, if it was in there with another; else nil
]]
--- @include "cost_of"
--- @include "key"
--- @include "member"
--- @include "note_front"
--- @include "spend"
local function index_static(load, fades, old_place)
  if load.draining then
    return
  end
  local all = load.capacity or not fades
  local cost = all and cost_of(load, load.unleased, load.expected) or cost_of(load, 0, 0)
  local index_member = member(load.place, load.name)
  local old_member = old_place and member(old_place, load.name)
  spend(#load.pools)
  for _, pool in ipairs(load.pools) do
    local index = key("model", pool)
    if old_member then
      redis.call("ZREM", index, old_member)
    end
    redis.call("ZADD", index, cost, index_member)
    note_front("model", pool)
  end
end
