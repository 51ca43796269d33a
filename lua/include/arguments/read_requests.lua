--[[
  Read the requests of a dispatch from its arguments, and check them.

  Input:
    first  the number of the first argument
    names  the names of the arguments of a request: 'model', 'lease_ttl', and 'draw' for the lottery

  Output: an array of tables with these names, of which lease_ttl and draw are numbers; nil if an argument is invalid,
  or if there is no request.
]]
--- @include "argument_groups"
--- @include "finite_number"
--- @include "whole_number"
local function read_requests(first, names)
  local requests = argument_groups(first, names)
  if not requests or not requests[1] then
    return nil
  end
  for _, request in ipairs(requests) do
    request.lease_ttl = request.lease_ttl == "0" and 0 or whole_number(request.lease_ttl, 0)
    if not request.lease_ttl then
      return nil
    end
    if request.draw then
      request.draw = finite_number(request.draw)
      if not request.draw or request.draw >= 1 then
        return nil
      end
    end
  end
  return requests
end
