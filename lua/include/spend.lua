--[[
  Counts the work of a call, so that no call holds up the others for long. A unit is about one entry of an index, which
  takes 1 to 2 microseconds. A script stops between two items when the budget is spent, and its caller calls it again
  for the rest. The first item of a call is always done.

  Input:
    units  how much work is about to be done; 0 to ask only

  Output: whether the budget is spent.
]]
local BUDGET = 1500
local spent = 0

local function spend(units)
  spent = spent + units
  return spent >= BUDGET
end
