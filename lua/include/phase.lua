--[[
  How far the bookings of a model have faded since the beginning, and how much faster than that those of a worker of
  speed 1 fade. The rule in Python: controller/domain/fade.py.

  Input:
    model  the model's name; nil for a worker that has none
    time   the time
    fade   what include/learn.lua has written, if the script has read it together with something else; else nil or false

  Output: the phase; the pace and the phase, both as text, because to make text of a number takes time
]]
--- @include "key"
local phases = {} -- by model: in a batch the same again and again; include/learn.lua takes back what has changed

local function phase(model, time, fade)
  local known = model and phases[model]
  if not known then
    fade = fade or model and redis.call("GET", key("fade", model))
    if not fade then
      return 0, "1", "0"
    end
    local phase_then, at, time_constant, pace = fade:match("(%S+) (%S+) (%S+) (%S+)")
    local phase_now = phase_then + math.max(0, time - at) / time_constant -- the clock may have been set back
    known = { phase_now, pace, phase_now .. "" }
    phases[model] = known
  end
  return known[1], known[2], known[3]
end
