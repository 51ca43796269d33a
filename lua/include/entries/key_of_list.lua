--[[
  Return the key of a list that all replicas keep a copy of; nil if there is no such list.

  Input:
    list  'tokens', 'engines' or 'routes'
]]
--- @include "key"
local function key_of_list(list)
  local keys = { tokens = key("tokens"), engines = key("engines"), routes = key("routes") }
  return keys[list]
end
