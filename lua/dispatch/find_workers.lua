--[[
  Find a live worker for each of some models, at random, and book nothing. It is for requests that are no load, and for
  the question whether a model has a live worker. Failing workers are found only if the model has no others.

  Keys:
    heartbeat:<name>        STRING  r
    pools:<model>           STRING  r
    lottery:<pool>          ZSET    r
    lottery_failing:<pool>  ZSET    r

  Input:
    KEYS[1]   {<namespace>}
    ARGV[1…]  for each request: model, draw
                model: the name of the model
                draw: a random number from [0, 1)

  Output:
    an array with one entry for each request, in order; if there are fewer, call again for the rest
      the name of a worker
      ''   no live worker serves the model
      nil  it has hundreds of expired workers, and none of those that were read is alive: repeat it with another draw
    error 'INVALID …' if an argument is invalid
]]
--- @include "argument_groups"
--- @include "finite_number"
--- @include "handle_each"
--- @include "is_alive"
--- @include "key"
--- @include "pools_of"
--- @include "spend"
local CHUNK = 16
local MAX_EXPIRED = 512 -- per request, so that one call cannot block Redis for long; the sweep purges them

local requests = argument_groups(1, { "model", "draw" })
if not requests or not requests[1] then
  return redis.error_reply("INVALID arguments")
end
for _, request in ipairs(requests) do
  request.draw = finite_number(request.draw)
  if not request.draw or request.draw >= 1 then
    return redis.error_reply("INVALID draw")
  end
end

local expired -- the number of expired workers that were read for this request

-- Return the first live worker in a range of positions of an index, or nil.
local function first_live(index, first, last)
  for begin = first, last, CHUNK do
    if expired >= MAX_EXPIRED then
      return nil
    end
    local names = redis.call("ZRANGE", index, begin, math.min(begin + CHUNK - 1, last))
    for i, name in ipairs(names) do
      if is_alive(name) then
        spend(i)
        return name
      end
    end
    spend(#names)
    expired = expired + #names
  end
  return nil
end

local function find(request)
  expired = 0
  local pools = pools_of(request.model)
  local first_pool = math.floor(request.draw * #pools)
  local within = request.draw * #pools - first_pool
  local indexes = {}
  for i = 1, #pools do
    local pool = pools[(first_pool + i - 1) % #pools + 1]
    indexes[i], indexes[#pools + i] = key("lottery", pool), key("lottery_failing", pool)
  end
  for _, index in ipairs(indexes) do
    local size = redis.call("ZCARD", index)
    local first = math.floor(within * size)
    local name = first_live(index, first, size - 1) or first_live(index, 0, first - 1)
    spend(1)
    if name then
      return name
    elseif expired >= MAX_EXPIRED then
      return false -- which is nil in the answer of Redis
    end
  end
  return ""
end

return handle_each(requests, find)
