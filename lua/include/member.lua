--[[
  A worker's member in the index of a model: its turn in 16 digits, then its name.

  A sorted set orders equal scores by member, so among workers of equal load the one with the least turn (the
  least recently chosen) stands first. 16 digits hold every integer that a Lua number holds exactly.
]]
local function member(turn, name)
  return string.format("%016d", turn) .. name
end
