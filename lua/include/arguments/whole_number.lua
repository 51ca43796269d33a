--[[
  Return an argument as a number if it is a whole number from `least` to 2^53, otherwise nil.
]]
local function whole_number(argument, least)
  local number = tonumber(argument)
  if number and number >= least and number <= 9007199254740992 and number % 1 == 0 then
    return number
  end
  return nil
end
