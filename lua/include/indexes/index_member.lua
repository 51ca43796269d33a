--[[
  Return a worker's member in the cost index of a pool: the sequence number `seq` in 16 digits, then its `name`.

  A sorted set orders equal scores by member. So among workers of equal cost the one with the lowest number, which was
  dispatched to least recently, stands first. 16 digits hold every integer that a Lua number holds exactly.
]]
local function index_member(seq, name)
  return string.format("%016d", seq) .. name
end
