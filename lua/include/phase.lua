--[[
  How far the bookings of a model have faded since the beginning, and how much faster than that those of a worker of
  speed 1 fade. The rule in Python: controller/domain/fade.py.

  Input:
    model  the model's name; nil for a worker that has none
    time   the time

  Output: phase, pace, and the phase as text
]]
--- @include "key"
local phases, paces, texts = {}, {}, {}

local function phase(model, time)
  local known = model and phases[model]
  if known then
    return known, paces[model], texts[model]
  end
  local fade = model and redis.call("GET", key("fade", model))
  if not fade then
    return 0, 1, "0"
  end
  local phase_then, at, time_constant, pace = fade:match("(%S+) (%S+) (%S+) (%S+)")
  known = phase_then + (time - at) / time_constant
  phases[model], paces[model], texts[model] = known, tonumber(pace), known .. ""
  return known, paces[model], texts[model]
end
