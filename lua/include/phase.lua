--[[
  How far the bookings of a model have faded since the beginning, and how much faster than that those of a worker of
  speed 1 fade. The rule in Python: controller/domain/fade.py.

  Input:
    model  the model's name; nil for a worker that has none
    time   the time

  Output: phase, pace, and the phase as text
]]
--- @include "key"
local phases = {} -- by model: in a batch the same again and again; include/learn.lua takes back what has changed
local fades_read = {} -- by model, where a script has read it together with something else

local function phase(model, time)
  local known = model and phases[model]
  if not known then
    local fade = model and (fades_read[model] or redis.call("GET", key("fade", model)))
    if not fade then
      return 0, 1, "0"
    end
    local phase_then, at, time_constant, pace = fade:match("(%S+) (%S+) (%S+) (%S+)")
    local phase_now = phase_then + math.max(0, time - at) / time_constant -- the clock may have been set back
    known = { phase_now, tonumber(pace), phase_now .. "" }
    phases[model] = known
  end
  return known[1], known[2], known[3]
end
