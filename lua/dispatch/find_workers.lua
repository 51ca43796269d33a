--[[
  Find a random live worker for each of some models, and book nothing. Used for requests that put no load on a worker,
  and to check whether a model has a live worker. Failing workers are found only if the model has no others.

  Keys:
    heartbeat:<name>        STRING  r
    pools:<model>           STRING  r
    lottery:<pool>          ZSET    r
    lottery_failing:<pool>  ZSET    r

  Input:
    KEYS[1]   {<namespace>}
    ARGV[1…]  for each request: model, draw, excluded
                model: the name of the model
                draw: a random number from [0, 1)
                excluded: the names of workers that are not to be found, with a line break between them

  Output:
    an array with one entry for each request, in order; if there are fewer, call again for the rest
      the name of a worker
      ''   no live worker serves the model
      nil  the script read hundreds of expired or excluded workers of the model, and no other: call again with
           another draw
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
local MAX_SKIPPED = 384 -- per request, so that one call cannot block Redis for long; the sweep purges them

local requests = argument_groups(1, { "model", "draw", "excluded" })
if not requests or not requests[1] then
  return redis.error_reply("INVALID arguments")
end
for _, request in ipairs(requests) do
  request.draw = finite_number(request.draw)
  if not request.draw or request.draw >= 1 then
    return redis.error_reply("INVALID draw")
  end
  local is_excluded = {}
  for name in request.excluded:gmatch("[^\n]+") do
    is_excluded[name] = true
  end
  request.is_excluded = is_excluded
end

local skipped -- the number of expired and excluded workers that were read for this request
local is_excluded

-- Return the first live worker in a range of positions of an index, or nil.
local function first_live(index, first, last)
  for begin = first, last, CHUNK do
    if skipped >= MAX_SKIPPED then
      return nil
    end
    local names = redis.call("ZRANGE", index, begin, math.min(begin + CHUNK - 1, last))
    for i, name in ipairs(names) do
      if not is_excluded[name] and is_alive(name) then
        spend(i)
        return name
      end
    end
    spend(#names)
    skipped = skipped + #names
  end
  return nil
end

-- Return a live worker of some indexes, or nil. Each of their workers is equally likely to be looked at first.
local function find_in(indexes, draw)
  local sizes, total = {}, 0
  for i, index in ipairs(indexes) do
    sizes[i] = redis.call("ZCARD", index)
    total = total + sizes[i]
  end
  spend(#indexes)
  local position, start_index = math.floor(draw * total), 1
  while start_index < #indexes and position >= sizes[start_index] do
    position, start_index = position - sizes[start_index], start_index + 1
  end
  for i = 0, #indexes do -- the first index comes twice: from the position on, and up to it
    local number = (start_index + i - 1) % #indexes + 1
    local first = i == 0 and position or 0
    local last = i == #indexes and position - 1 or sizes[number] - 1
    local name = first_live(indexes[number], first, last)
    if name then
      return name
    end
  end
  return nil
end

local function find(request)
  skipped, is_excluded = 0, request.is_excluded
  local serving, failing = {}, {}
  for i, pool in ipairs(pools_of(request.model)) do
    serving[i], failing[i] = key("lottery", pool), key("lottery_failing", pool)
  end
  local name = find_in(serving, request.draw) or find_in(failing, request.draw)
  return name or (skipped < MAX_SKIPPED and "") -- false is nil in the answer of Redis
end

return handle_each(requests, find)
