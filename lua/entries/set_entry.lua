--[[
  Write an entry of a list that all replicas keep a copy of, or remove one.

  Keys:
    tokens              HASH    rw
    engines             HASH    rw
    routes              HASH    rw
    reply:<request_id>  STRING  rw

  Input:
    KEYS[1]  {<namespace>}
    ARGV[1]  request_id: id of the call; once a call with this id has returned 1, others return 1 and change nothing
    ARGV[2]  reply_ttl: the milliseconds for which the reply is kept
    ARGV[3]  list: as in list_entries.lua
    ARGV[4]  limit: how many entries there may be
    ARGV[5]  replaces: '1' to replace an entry with this name, '0' to keep it and do nothing
    ARGV[6]  name: the name of the entry
    ARGV[7]  record: the text of the entry; '' to remove it

  Output:
    1   the entry was written or removed
    0   there is an entry with this name, and `replaces` is '0', or there is none to remove; nothing was done
    -1  the list has `limit` entries already; nothing was done
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "key"
--- @include "key_of_list"
--- @include "whole_number"
local request_id, reply_ttl, list = ARGV[1], whole_number(ARGV[2], 1), key_of_list(ARGV[3])
local limit, replaces, name, record = whole_number(ARGV[4], 1), ARGV[5], ARGV[6], ARGV[7]
if not reply_ttl or not list or not limit or not record then
  return redis.error_reply("INVALID arguments")
elseif name == "" or (replaces ~= "0" and replaces ~= "1") then
  return redis.error_reply("INVALID entry")
end

local reply = key("reply", request_id)
local earlier = redis.call("GET", reply)
if earlier then
  return tonumber(earlier)
end

local field, is_removal = "entry:" .. name, record == ""
local old = redis.call("HGET", list, field)
if (is_removal and not old) or (old and not is_removal and replaces == "0") then
  return 0
elseif not old and redis.call("HLEN", list) - 2 >= limit then -- `version` and `change` are fields, too
  return -1
end
local version = (redis.call("HGET", list, "version") or 0) + 1
redis.call("HSET", list, "version", version, "change", request_id)
if is_removal then
  redis.call("HDEL", list, field)
else
  redis.call("HSET", list, field, record)
end
redis.call("SET", reply, 1, "PX", reply_ttl)
return 1
