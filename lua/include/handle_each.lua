--[[
  Handle items one after the other until the budget of the call is spent.

  Input:
    items   an array
    handle  a function that gets an item and returns its result

  Output: an array of the results, in order. It is shorter than `items` if the budget did not suffice.
]]
--- @include "spend"
local function handle_each(items, handle)
  local results = {}
  for i, item in ipairs(items) do
    results[i] = handle(item)
    if spend(1) then
      break
    end
  end
  return results
end
