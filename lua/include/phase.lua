--[[
  How far the bookings of a pool have faded since the beginning, and how much faster than that those of a worker of
  speed 1 fade. The rule in Python: controller/domain/fade.py.

  Input:
    clock  as include/clock_of.lua gives it
    time   the time
    fade   what include/learn.lua has written, if the script has read it together with something else; else nil or false

  Output: the phase; the pace and the phase, both as text, because to make text of a number takes time
]]
--- @include "key"
local phases = {} -- by clock: in a batch the same again and again; include/learn.lua takes back what has changed

local function phase(clock, time, fade)
  local known = clock and phases[clock]
  if not known then
    fade = fade or clock and redis.call("GET", key("fade", clock))
    if not fade then
      return 0, "1", "0"
    end
    local phase_then, at, time_constant, pace = fade:match("(%S+) (%S+) (%S+) (%S+)")
    local phase_now = phase_then + math.max(0, time - at) / time_constant -- the clock may have been set back
    known = { phase_now, pace, phase_now .. "" }
    phases[clock] = known
  end
  return known[1], known[2], known[3]
end
