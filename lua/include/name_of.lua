--[[
  The worker's name in a member of an index: what include/member.lua put behind the 16 digits.
]]
local function name_of(index_member)
  return string.sub(index_member, 17)
end
