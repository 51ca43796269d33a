--[[
  Return the worker's name in a member of a cost index, which include/indexes/index_member.lua made.
]]
local function name_in_member(member)
  return string.sub(member, 17)
end
