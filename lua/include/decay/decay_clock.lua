--[[
  Read a decay clock. It advances by 1 in each time constant, so untracked load decays by exp(-difference of readings).

  Indexes are sorted by the logarithm of the load plus the reading at which it had that value (forward decay). That
  order stays as it is while time passes. The reference model is tests/model/decay.py.

  Input:
    name     as include/decay/decay_clock_of.lua returns it
    time     the time
    written  what include/decay/learn_decay.lua has written, if the script has read it already; otherwise nil or false

  Output: the reading, 0 if the clock has not started; the decay rate of a worker of speed 1, relative to this clock;
  the reading as text, because to convert a number to text takes Lua longer than most of what a dispatch does.
]]
--- @include "key"
-- The readings and what was written, by name, because a batch needs them again. include/decay/learn_decay.lua uses them
-- too, and deletes changed ones.
local readings = {}

local function decay_clock(name, time, written)
  if not name then
    return 0, 1, "0"
  end
  local known = readings[name]
  if not known then
    written = written or redis.call("GET", key("decay", name))
    if not written then
      readings[name] = { 0, 1, "0" }
      return 0, 1, "0"
    end
    local reading, read_at, time_constant, rate = written:match("(%S+) (%S+) (%S+) (%S+)")
    local elapsed = math.max(0, time - read_at) -- the clock of Redis may have been set back
    reading = reading + elapsed / time_constant
    known = { reading, tonumber(rate), tostring(reading), written }
    readings[name] = known
  end
  return known[1], known[2], known[3]
end
