--[[
  Create a token, or revoke one.

  Keys:
    tokens              HASH    rw
    reply:<request_id>  STRING  rw

  Input:
    KEYS[1]  {<namespace>}
    ARGV[1]  request_id: id of the call; a repeated call with the same id gets the first reply and changes nothing
    ARGV[2]  reply_ttl: the milliseconds for which the reply is kept
    ARGV[3]  limit: how many tokens there may be
    ARGV[4]  name: the name of the token
    ARGV[5]  record: the token as controller/security/tokens.py encodes it; '' to revoke the token

  Output:
    1   the token was created or revoked
    0   there is a token with this name already, or none to revoke; nothing was done
    -1  there are too many tokens; nothing was done
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "key"
--- @include "whole_number"
local request_id, reply_ttl, limit = ARGV[1], whole_number(ARGV[2], 1), whole_number(ARGV[3], 1)
local name, record = ARGV[4], ARGV[5]
if not reply_ttl or not limit or not record then
  return redis.error_reply("INVALID arguments")
elseif not name:match("^[%w._-]+$") then
  return redis.error_reply("INVALID name")
end

local reply = key("reply", request_id)
local earlier = redis.call("GET", reply)
if earlier then
  return tonumber(earlier)
end

local tokens, field = key("tokens"), "token:" .. name
local is_removal = record == ""
local exists = redis.call("HGET", tokens, field)
if (exists and true or false) ~= is_removal then
  return 0
elseif not is_removal and redis.call("HLEN", tokens) > limit + 1 then -- two fields are no tokens
  return -1
end
local version = (redis.call("HGET", tokens, "version") or 0) + 1
redis.call("HSET", tokens, "version", version, "change", request_id)
if is_removal then
  redis.call("HDEL", tokens, field)
else
  redis.call("HSET", tokens, field, record)
end
redis.call("SET", reply, 1, "PX", reply_ttl)
return 1
