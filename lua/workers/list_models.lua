--[[
  List the models that have a live worker. Each call checks some of them, so that it cannot block Redis for long. It
  checks the unfinished models of the previous call, or else further ones. A model that has a live worker during the
  whole listing is found.

  Keys:
    heartbeat:<name>        STRING  r
    models                  SET     r
    pools:<model>           STRING  r
    lottery:<pool>          ZSET    r
    lottery_failing:<pool>  ZSET    r

  Input:
    KEYS[1]   {<namespace>}
    ARGV[1]   cursor: '0' to begin, then the cursor that the previous call returned
    ARGV[2]   count: about how many models to check
    ARGV[3…]  for each unfinished model of the previous call: model, position
                model: its name
                position: how many of its workers were checked

  Output:
    an array:
      [1]  the cursor for the next call; '' if all models but the unfinished ones were checked
      [2]  an array of the models that were found, in arbitrary order; a model may be found twice
      [3]  an array of the unfinished models: model and position of each. The budget of the call was spent before they
           were checked, or before a live worker of theirs was found
    error 'INVALID …' if an argument is invalid
]]
--- @include "argument_groups"
--- @include "is_alive"
--- @include "key"
--- @include "pools_of"
--- @include "spend"
--- @include "whole_number"
local STEP = 64

local cursor, count = ARGV[1], whole_number(ARGV[2], 1)
local unfinished_before = argument_groups(3, { "model", "position" })
local is_valid = cursor:match("^%d+$") or (cursor == "" and unfinished_before and unfinished_before[1])
if not is_valid or not count or not unfinished_before then
  return redis.error_reply("INVALID arguments")
end
for _, each in ipairs(unfinished_before) do
  each.position = whole_number(each.position, 0)
  if not each.position then
    return redis.error_reply("INVALID number")
  end
end

-- Return names of workers of a model from a position on. The order is: pool by pool, and in each pool first the workers
-- that are not failing.
local function workers_of(pools, position)
  local names = {}
  for _, pool in ipairs(pools) do
    for _, index in ipairs({ key("lottery", pool), key("lottery_failing", pool) }) do
      local some = redis.call("ZRANGE", index, position, position + STEP - 1 - #names)
      for _, name in ipairs(some) do
        names[#names + 1] = name
      end
      if #names == STEP then
        return names
      end
      position = math.max(0, position - redis.call("ZCARD", index))
      spend(2)
    end
  end
  return names
end

local found, unfinished = {}, {}
local has_begun = false

local function check(model, position)
  if not has_begun or not spend(1) then
    has_begun = true
    local pools = pools_of(model)
    repeat
      local names = workers_of(pools, position)
      for _, name in ipairs(names) do
        spend(1)
        if is_alive(name) then
          found[#found + 1] = model
          return
        end
      end
      position = position + #names
      if #names < STEP then
        return
      end
    until spend(1)
  end
  unfinished[#unfinished + 1] = model
  unfinished[#unfinished + 1] = tostring(position)
end

for _, each in ipairs(unfinished_before) do
  check(each.model, each.position)
end
if not unfinished_before[1] then
  local step = redis.call("SSCAN", key("models"), cursor, "COUNT", count)
  cursor = tostring(step[1]) ~= "0" and tostring(step[1]) or ""
  for _, model in ipairs(step[2]) do
    check(model, 0)
  end
end
return { cursor, found, unfinished }
