--[[
  Read the affinity of a request from its argument.

  Input:
    text  '<ttl>#<max_keys>#<key>,<key>,…', with the most specific key first
            ttl: the milliseconds for which a key is remembered at least, if there is room
            max_keys: how many keys the namespace remembers, about
            key: letters, digits, '_' and '-'

  Output: a table with ttl, max_keys, and keys, an array; nil if the text is invalid.
]]
--- @include "whole_number"
local function parse_affinity(text)
  local MAX_KEYS, MAX_LENGTH = 16, 64
  local ttl, max_keys, written = text:match("^(%d+)#(%d+)#([%w_,-]+)$")
  ttl, max_keys = ttl and whole_number(ttl, 1000), max_keys and whole_number(max_keys, 1)
  if not ttl or not max_keys then
    return nil
  end
  local keys = {}
  for each in (written .. ","):gmatch("([^,]*),") do
    if each == "" or #each > MAX_LENGTH or #keys == MAX_KEYS then
      return nil
    end
    keys[#keys + 1] = each
  end
  return { ttl = ttl, max_keys = max_keys, keys = keys }
end
