--[[
  Return an argument as a number if it is a whole number from `least` to 2^53, otherwise nil.
]]
--- @include "constants"
local function whole_number(argument, least)
  local number = tonumber(argument)
  if number and number >= least and number <= MAX_WHOLE_NUMBER and number % 1 == 0 then
    return number
  end
  return nil
end
