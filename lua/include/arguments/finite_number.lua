--[[
  Return an argument as a number if it is finite and not negative, otherwise nil.
]]
local function finite_number(argument)
  local number = tonumber(argument)
  if number and number >= 0 and number < math.huge then
    return number
  end
  return nil
end
