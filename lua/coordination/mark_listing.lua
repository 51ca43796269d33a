--[[
  Store the number of a replica's latest listing of the workers. If Redis has a lower number than the replica stored
  before, Redis has lost changes that the replica listed. Other counters cannot show this: after a loss, dispatches may
  bring them back to their old values.

  Keys:
    listings  HASH  rw

  Input:
    KEYS[1]  {<namespace>}
    ARGV[1]  replica: the id of the replica
    ARGV[2]  known: the last number that the replica has stored; 0 if there is none
    ARGV[3]  number: of the new listing

  Output:
    1  it is stored, or a later one is
    0  Redis lost the listing `known`; nothing was done, so that a repeated call gets the same reply
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "key"
--- @include "whole_number"
local replica, known, number = ARGV[1], whole_number(ARGV[2], 0), whole_number(ARGV[3], 1)
if not known or not number then
  return redis.error_reply("INVALID arguments")
end
-- A missing number shows no loss: join_replicas.lua deletes those of expired replicas when there are too many.
local noted = tonumber(redis.call("HGET", key("listings"), replica) or known)
if noted < known then
  return 0
end
if number > noted then -- otherwise, the call comes late, or again
  redis.call("HSET", key("listings"), replica, number)
end
return 1
