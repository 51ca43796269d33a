--[[
  Read the requests of a dispatch from its arguments, and check them.

  Input:
    first  the number of the first argument
    names  the names of the arguments of a request, in this order: 'model', 'lease', and 'draw' for the lottery

  The argument `lease` is a number of milliseconds, 0 for no lease. If the leases of a token are limited, '@', its
  name, '@' and the limit follow. If the request has an affinity, '#' and the text of it follow.

  Output: an array of tables with `model`, `lease_ttl`, `draw` for the lottery, `token` and `token_limit`, which are nil
  without a limit, and `affinity`, as include/arguments/parse_affinity.lua returns it, which is nil without one.
  lease_ttl, draw and token_limit are numbers. nil if an argument is invalid, or if there is no request.
]]
--- @include "parse_affinity" when called
--- @include "whole_number"
local function read_requests(first, names)
  local size, has_draws = #names, names[3] == "draw"
  local requests = {}
  for i = first, #ARGV, size do
    local model, lease, draw = ARGV[i], ARGV[i + 1] or "", has_draws and tonumber(ARGV[i + 2])
    local lease_ttl = lease == "0" and 0 or whole_number(lease, 0)
    local token, token_limit, affinity
    if not lease_ttl then
      local text, written = lease:match("^([^#]*)(.*)$")
      affinity = written ~= "" and parse_affinity(written:sub(2)) or nil
      lease_ttl = affinity and whole_number(text, 0)
      if not lease_ttl and (affinity or written == "") then
        lease_ttl, token, token_limit = text:match("^(%d+)@([%w._-]+)@(%d+)$")
        lease_ttl, token_limit = lease_ttl and whole_number(lease_ttl, 1), tonumber(token_limit)
      end
    end
    if not lease_ttl or (has_draws and not (draw and draw >= 0 and draw < 1)) then
      return nil
    end
    local request = { model = model, lease_ttl = lease_ttl, draw = draw }
    if token then
      request.token, request.token_limit = token, token_limit
    end
    if affinity then
      request.affinity = affinity
    end
    requests[#requests + 1] = request
  end
  return requests[1] and requests
end
