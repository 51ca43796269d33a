--[[
  Restore the tokens after Redis lost them. They replace what Redis has, unless that is as new.

  Keys:
    tokens  HASH    rw

  Input:
    KEYS[1]   {<namespace>}
    ARGV[1]   version: the version of these tokens, as in list_tokens.lua
    ARGV[2]   change: their latest change
    ARGV[3…]  for each token: name, record
                name: the name of the token
                record: as in set_token.lua

  Output:
    1  they were restored, or Redis has them
    0  the tokens in Redis are others, of the same version or a later one; nothing was done
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "argument_groups"
--- @include "key"
--- @include "whole_number"
local version, change = whole_number(ARGV[1], 1), ARGV[2]
local restored = argument_groups(3, { "name", "record" })
if not version or not change or not restored then
  return redis.error_reply("INVALID arguments")
end
for _, token in ipairs(restored) do
  if not token.name:match("^[%w._-]+$") or token.record == "" then
    return redis.error_reply("INVALID token")
  end
end

local tokens = key("tokens")
local found = redis.call("HMGET", tokens, "version", "change")
local found_version = tonumber(found[1] or 0)
if found_version >= version then
  return found_version == version and found[2] == change and 1 or 0
end
redis.call("DEL", tokens)
local fields = { "version", version, "change", change }
for _, token in ipairs(restored) do
  fields[#fields + 1] = "token:" .. token.name
  fields[#fields + 1] = token.record
end
redis.call("HSET", tokens, unpack(fields))
return 1
