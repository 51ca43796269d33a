--[[
  Return the best worker of several pools. It reads the head of each pool, but the workers of a pool only if no other
  pool is known to have a better one, and those of at most CANDIDATES_PER_INDEX pools.

  Input:
    model         the name of the model
    pools         the names of its pools
    index         'cost_index' or 'decay_index'
    known         a table of the best workers that are known, by pool: { cost, seq, load }. Without a load, the worker
                  is not known yet, and costs at least so much. It is filled by this function, and the caller deletes
                  the entries of a worker that it books
    best_of_pool  a function that gets the model, the pool, the index and the number of workers to compare, and returns
                  the best worker of one pool as this function does
    time          the time
    decays        true if bookings decay

  Output: the load of the best worker; false if the pools have no worker; nil if an entry was purged and the caller must
  try again.
]]
--- @include "constants"
--- @include "cost_of"
--- @include "decay_clock"
--- @include "decay_clock_of"
--- @include "key"
--- @include "spend"
--- @include "update_head"
local function best_of_pools(model, pools, index, known, best_of_pool, time, decays)
  local CANDIDATES_PER_INDEX = 8

  -- Return the lowest cost and sequence number that a worker of a pool can have, as an entry of `known`.
  -- score, seq: those of the first member of its index.
  local function bound_of(pool, score, seq)
    if index == "cost_index" then
      return { score, seq, nil }
    end
    local failing = 0
    if score >= MAX_WHOLE_NUMBER then -- the bands are those of include/indexes/update_decay_index.lua
      score, failing = score - FAILING_OFFSET, FAILING
    end
    if score <= MAX_WITHOUT_LOAD then
      return { failing, score + MAX_WHOLE_NUMBER, nil }
    end
    local lowest = math.exp(score / 1e6 - decay_clock(decay_clock_of({ pool }), time))
    return { failing + math.min(lowest, MAX_SERVING), -1, nil } -- as include/load/cost_of.lua limits it
  end

  -- Fill `known` for all of the pools, with false for a pool without workers.
  local function read_heads()
    local missing = {}
    for _, pool in ipairs(pools) do
      if known[pool] == nil then
        missing[#missing + 1] = pool
      end
    end
    if not missing[1] then
      return
    end
    spend(#missing)
    local heads = index == "cost_index" and key("cost_heads") or key("decay_heads")
    for i, head in ipairs(redis.call("HMGET", heads, unpack(missing))) do
      local pool = missing[i]
      local score, seq = head, nil
      if head and index == "cost_index" then
        score, seq = head:match("(%S+) (%S+)")
      elseif not head and pool:byte() ~= 30 then -- include/indexes/update_head.lua does not keep it
        local entry = redis.call("ZRANGE", key(index, pool), 0, 0, "WITHSCORES")
        score, seq = entry[2], index == "cost_index" and entry[1] and entry[1]:sub(1, 16)
      end
      known[pool] = score and bound_of(pool, tonumber(score), tonumber(seq or 0)) or false
    end
  end

  read_heads()
  local limit = math.max(1, math.ceil(CANDIDATES_PER_INDEX / #pools)) -- as many workers in all
  local pools_read = 0
  while true do
    local best, best_pool
    for _, pool in ipairs(pools) do
      local this = known[pool]
      if this and pools_read == CANDIDATES_PER_INDEX and not this[3] then
        this = nil
      end
      if this and (not best or this[1] < best[1] or (this[1] == best[1] and this[2] < best[2])) then
        best, best_pool = this, pool
      end
    end
    if not best then
      return false
    elseif best[3] then
      return best[3]
    end
    local load = best_of_pool(model, best_pool, index, limit)
    if load == nil then
      return nil
    elseif load then
      -- With clients of both kinds, the sequence numbers would order only workers that were read: all pools would be.
      local seq = index == "cost_index" and decays and -1 or tonumber(load.seq)
      pools_read = pools_read + 1
      known[best_pool] = { cost_of(load, load.untracked, load.untracked_own_rate), seq, load }
    else
      update_head(index, best_pool) -- the index was deleted by hand
      known[best_pool] = false
    end
  end
end
