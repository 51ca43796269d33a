--[[
  The time of the store, the only clock that decides anything. Milliseconds since 1970.
]]
local function now()
  local time = redis.call("TIME")
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
