--[[
  Notes what stands in front of an index of a pool, so that a dispatch for a model with many pools reads one key instead
  of all their indexes. To be called after each change of the index. Only of pools of sets of models: of the other kinds
  of pools, a model has one each.

  What is written in the hash 'fronts_model' or 'fronts_fading', in the field of the pool: the score; for the first
  index, behind it and a space, the turn in the member.

  Input:
    index  'model' or 'fading'
    pool   the name of the pool
]]
--- @include "key"
local function note_front(index, pool)
  if pool:byte() ~= 30 then
    return
  end
  local front = redis.call("ZRANGE", key(index, pool), 0, 0, "WITHSCORES")
  local fronts = key(index == "model" and "fronts_model" or "fronts_fading")
  if not front[1] then
    redis.call("HDEL", fronts, pool)
  elseif index == "fading" then
    redis.call("HSET", fronts, pool, front[2])
  else
    redis.call("HSET", fronts, pool, front[2] .. " " .. front[1]:sub(1, 16))
  end
end
