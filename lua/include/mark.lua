--[[
  A mark of how many were booked and lent before a time. All are 28 characters long, so that they can be counted by
  their length.

  Output: '<time>:<booked>:<lent>;'
]]
local function mark(time, booked, lent)
  return string.format("%013d:%06d:%06d;", time, booked, lent)
end
