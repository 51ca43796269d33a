--[[
  Count the work of a call, so that no call blocks Redis for long.

  One unit is about one index entry, which takes 1 to 2 microseconds. A script stops between two items when the budget
  is spent, and its caller calls it again for the rest. The first item of a call is always handled.

  Input:
    units  the work that is about to be done; 0 to check the budget only

  Output: true if the budget is spent.
]]
local BUDGET = 1500
local spent = 0

local function spend(units)
  spent = spent + units
  return spent >= BUDGET
end
