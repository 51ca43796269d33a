--[[
  The models that have a live worker, some at a time, so that no call holds up the dispatches for long. A model that has
  one all the while is found.

  Input:
    KEYS[1]   '{<ns>}' the namespace
    ARGV[1]   '0' to begin; then the cursor of the call before; '' if that was '0' and models are unfinished
    ARGV[2]   about how many models are looked at
    ARGV[3…]  the unfinished models that the call before returned, for each two: its name; how many of its workers were
              looked at

  Output:
    an array:
      [1]  the cursor for the next call; '0' when all models were looked at
      [2]  an array of the models that were found, in no order; one may be found twice
      [3]  an array of the unfinished models: so many dead workers came first that the budget did not suffice. For each
           two: its name; how many of its workers were looked at
    error 'INVALID …' if an argument cannot be
]]
--- @include "alive"
--- @include "key"
--- @include "pools_of"
--- @include "spend"
--- @include "whole_number"
local STEP = 64

local cursor, count = ARGV[1], whole_number(ARGV[2], 1)
if not cursor:match("^%d*$") or not count or #ARGV % 2 == 1 then
  return redis.error_reply("INVALID arguments")
end
for i = 4, #ARGV, 2 do
  if not whole_number(ARGV[i], 0) then
    return redis.error_reply("INVALID number")
  end
end

-- Names of workers of a model, from the place `first` on: of its pools one after the other, and in each first of the
-- workers that serve, then of those that fail.
local function workers_of(pools, first)
  local names = {}
  for _, pool in ipairs(pools) do
    for _, kind in ipairs({ "lottery", "lottery_failing" }) do
      local index = key(kind, pool)
      local some = redis.call("ZRANGE", index, first, first + STEP - 1 - #names)
      for _, name in ipairs(some) do
        names[#names + 1] = name
      end
      if #names == STEP then
        return names
      end
      first = math.max(0, first - redis.call("ZCARD", index))
      spend(2)
    end
  end
  return names
end

local found, unfinished = {}, {}
local begun = false

local function look_at(model, first)
  local pools = pools_of(model)
  while not begun or not spend(2) do
    begun = true
    local names = workers_of(pools, first)
    for _, name in ipairs(names) do
      spend(1)
      if alive(name) then
        found[#found + 1] = model
        return
      end
    end
    first = first + #names
    if #names < STEP then
      return
    end
  end
  unfinished[#unfinished + 1] = model
  unfinished[#unfinished + 1] = tostring(first)
end

for i = 3, #ARGV, 2 do
  look_at(ARGV[i], tonumber(ARGV[i + 1]))
end
if cursor ~= "" then
  local step = redis.call("SSCAN", key("models"), cursor, "COUNT", count)
  cursor = tostring(step[1])
  for _, model in ipairs(step[2]) do
    look_at(model, 0)
  end
end
return { cursor == "" and "0" or cursor, found, unfinished }
