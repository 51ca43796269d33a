--[[
  Return the arguments from number `first` on as groups, one for each item of the call.

  Input:
    first  the number of the first argument of the first group
    names  an array of the names of the arguments in a group

  Output: an array of tables with these names; nil if the last group is incomplete.
]]
local function argument_groups(first, names)
  local size = #names
  if (#ARGV + 1 - first) % size ~= 0 then
    return nil
  end
  local groups = {}
  for start = first, #ARGV, size do
    local group = {}
    for i = 1, size do
      group[names[i]] = ARGV[start + i - 1]
    end
    groups[#groups + 1] = group
  end
  return groups
end
