--[[
  Bound the work of a call, so that no call blocks Redis for long.

  A script stops between two items when the budget is spent, and its caller calls it again for the rest. The first item
  of a call is always handled. The budget is spent after BUDGET units of work, or after MAX_SECONDS: machines differ,
  and a unit, which is about one index entry, takes between 1 and 10 microseconds. Reading the clock takes about 1
  microsecond, so it is read only every CLOCK_STEP units, and never in a call for one item. Time counts from the first
  reading.

  Input:
    units  the work that is about to be done; a loop over items calls this with 1 for each item

  Output: true if the budget is spent.
]]
--- @include "seconds" when called
local BUDGET, MAX_SECONDS, CLOCK_STEP = 800, 0.0015, 10
local spent, looked_at, used = 0, 0, 0
local began

local function spend(units)
  spent = spent + units
  if spent - looked_at >= CLOCK_STEP then
    looked_at = spent
    local time = seconds()
    began = began or time
    used = time - began
  end
  return used >= MAX_SECONDS or spent > BUDGET
end
