--[[
  Keep the head of a pool's index in one hash for all pools, after each change of the index. So a dispatch for a model
  with many pools reads one key instead of all their indexes. Only pools of several models are kept there: of the other
  kinds of pool, a model has one each.

  Written to cost_heads or decay_heads, in the field of the pool: the score of the first member and, for the cost index,
  a space and the sequence number in the member.

  Input:
    index  'cost_index' or 'decay_index'
    pool   the name of the pool
]]
--- @include "key"
local function update_head(index, pool)
  if pool:byte() ~= 30 then
    return
  end
  local first = redis.call("ZRANGE", key(index, pool), 0, 0, "WITHSCORES")
  local heads = index == "cost_index" and key("cost_heads") or key("decay_heads")
  if not first[1] then
    redis.call("HDEL", heads, pool)
  elseif index == "decay_index" then
    redis.call("HSET", heads, pool, first[2])
  else
    redis.call("HSET", heads, pool, first[2] .. " " .. first[1]:sub(1, 16))
  end
end
