--[[
  Puts a worker where it belongs in the second index of each of its models: by what fades of its load, as the logarithm
  of that plus the phase, so that the order stays while time passes. In millionths, because the store is quicker to
  compare whole numbers. A worker that has nothing that fades stands in front, by its turn; those that fail stand behind
  all others. A worker that drains is in no index.

  Input:
    load  as include/load_of.lua gives it
    time  the time; nil or false where bookings do not fade
]]
--- @include "key"
--- @include "phase"
--- @include "spend"
local function index_fading(load, time)
  if load.draining then
    return
  end
  local failing = load.failing and 4e15 or 0 -- no phase comes there in 2 years
  spend(#load.models)
  for i, model in ipairs(load.models) do
    local score = load.turn - 1e15
    if time and load.unleased > 0 then
      local from = i == 1 and load.phase or phase(model, time)
      score = math.floor(1e6 * (math.log(load.unleased / load.speed) + from))
    end
    redis.call("ZADD", key("fading", model), score + failing, load.name)
  end
end
