--[[
  Live workers with all that is known of them, some at a time, so that no call holds up the dispatches for long. A
  worker that is there all the while is met at least once, maybe twice; what is told of it was so at the instant of the
  call.

  Input:
    KEYS[1]  '{<ns>}' the namespace
    ARGV[1]  '0' to begin; then the place at which the call before ended
    ARGV[2]  about how many workers are looked at
    ARGV[3]  '1' if bookings fade, else '0'

  Output:
    an array:
      [1]  the place at which to go on; '0' when all were met
      [2]  the number of registrations, requested dispatches, drains and removals so far
      [3]  the name of the store's memory, as check.lua has given it; '' if it has none
      [4]  the time of the store in milliseconds
      [5]  an array with one array a worker, in no order:
             [1]  name
             [2]  models, a JSON array
             [3]  speed
             [4]  queue length, rounded; at most 10^9
             [5]  '1' if it is multimodal, else '0'
             [6]  '1' if it must send heartbeats, else '0'
             [7]  number of its registration
             [8]  age of its last heartbeat or registration in milliseconds
             [9]  milliseconds until it expires; -1 for a worker that need not send heartbeats
             [10] how many leases are out
             [11] capacity; '' if it does not tell
             [12] '1' if it drains, else '0'
             [13] 'request' or 'polls' if it fails, as in report_failure.lua, else ''
             [14] '1' if it has ever answered a poll, else '0'
             [15] how many requests it last said that it has
             [16] how many it was sent since without a lease
    error 'INVALID …' if an argument cannot be
]]
--- @include "key"
--- @include "load_of"
--- @include "now"
--- @include "whole_number"
local place, count = ARGV[1], whole_number(ARGV[2], 1)
local fades = ARGV[3] == "1"
if not place:match("^%d+$") or not count then
  return redis.error_reply("INVALID arguments")
end

local time = now()
local step = redis.call("ZSCAN", key("workers"), place, "COUNT", count)
local members = step[2] -- names and scores by turns

local workers = {}
for i = 1, #members, 2 do
  local name = members[i]
  local expires_in = redis.call("PTTL", key("heartbeat", name)) -- -2: there is no such key
  local load = load_of(name, fades and time)
  if expires_in ~= -2 and load then
    local fields = redis.call("HMGET", load.worker, "models", "speed", "multimodal", "check_heart_beat",
      "registration", "heartbeat_at", "capacity", "polled", "reported", "drawn")
    -- What is booked comes on top of what it reported, which may be the most that there can be.
    local queue_length = math.min(1e9, math.floor(load.leased - load.ended + (load.expected or load.unleased) + 0.5))
    workers[#workers + 1] = {
      name, fields[1], fields[2], string.format("%.0f", queue_length), fields[3], fields[4], fields[5],
      math.max(0, time - tonumber(fields[6])), expires_in,
      load.leased, fields[7], load.draining and "1" or "0", load.failing or "", fields[8],
      tonumber(fields[9]), load.booked + (fields[10] or 0),
    }
  end
end
local sequence = tonumber(redis.call("GET", key("sequence")) or 0)
return { tostring(step[1]), sequence, redis.call("GET", key("epoch")) or "", time, workers }
