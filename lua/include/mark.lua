--[[
  A mark of how many were booked and lent before a time.

  Output: '<time>:<booked>:<lent>;'
]]
local function mark(time, booked, lent)
  return string.format("%013d:%.0f:%.0f;", time, booked, lent)
end
