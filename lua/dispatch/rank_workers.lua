--[[
  Rank the workers that a model's next request without a lease may go to, the best first. Book nothing.

  It compares the first live workers of both indexes of each pool, as dispatch_shortest_queue.lua does.

  Keys:
    worker:<name>       HASH    r
    heartbeat:<name>    STRING  r
    pools:<model>       STRING  r
    cost_index:<pool>   ZSET    r
    decay_index:<pool>  ZSET    r
    decay:<pool>        STRING  r

  Input:
    KEYS[1]  {<namespace>}
    ARGV[1]  model: the name of the model
    ARGV[2]  decays: '1' if bookings decay, otherwise '0'

  Output:
    an array with one array for each worker:
      [1] name
      [2] its cost, as include/load/cost_of.lua returns it
      [3] its requests: active leases that no report shows as finished, and untracked load
      [4] the number of active leases
      [5] its capacity; '' if it is unknown
      [6] its speed
      [7] '1' if it is failing, otherwise '0'
]]
--- @include "cost_of"
--- @include "is_alive"
--- @include "key"
--- @include "now"
--- @include "pools_of"
--- @include "read_load"
local CANDIDATES_PER_INDEX = 8 -- as in dispatch_shortest_queue.lua
local MAX_SKIPPED = 128 -- per call, because expired workers may stand before the live ones until the sweep

local model, decays = ARGV[1], ARGV[2] == "1"
local time = now()
local found, is_added, skipped = {}, {}, 0

-- Add a worker to those found, if it can be chosen. Return true if it was added.
local function add(name)
  local load = is_alive(name) and read_load(name, decays and time)
  if not load or load.draining then
    return false
  end
  local cost = cost_of(load, load.untracked, load.untracked_own_rate)
  found[#found + 1] = { load = load, cost = cost, seq = tonumber(load.seq) }
  return true
end

-- Add the first live workers of an index to those found.
local function read_index(index, limit)
  local added, position = 0, 0
  repeat
    local entries = redis.call("ZRANGE", index, position, position + limit - 1)
    for _, entry in ipairs(entries) do
      if added == limit then
        return
      end
      local name = entry:match("^" .. ("%d"):rep(16) .. "(.+)$") or entry -- include/indexes/index_member.lua
      if is_added[name] == nil then
        is_added[name] = add(name)
        skipped = skipped + (is_added[name] and 0 or 1)
      end
      added = added + (is_added[name] and 1 or 0)
    end
    position = position + limit
  until #entries < limit or skipped >= MAX_SKIPPED
end

local pools = pools_of(model)
local limit = math.max(1, math.ceil(CANDIDATES_PER_INDEX / #pools))
for _, pool in ipairs(pools) do
  read_index(key("cost_index", pool), limit)
  read_index(key("decay_index", pool), limit)
end

table.sort(found, function(a, b)
  return a.cost < b.cost or (a.cost == b.cost and a.seq < b.seq)
end)
local ranked = {}
for i, each in ipairs(found) do
  local load = each.load
  local requests = load.leased - load.finished + load.untracked
  ranked[i] = {
    load.name, string.format("%.17g", each.cost), string.format("%.17g", requests), load.leased, load.capacity or "",
    load.speed, load.failing and "1" or "0",
  }
end
return ranked
