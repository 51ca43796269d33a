--[[
  List live workers with their state. Each call lists some of them, so that it cannot block Redis for long. A worker
  that is alive during the whole listing is listed at least once, maybe twice. Its state is as of the call.

  Keys:
    workers           ZSET    r
    worker:<name>     HASH    r
    heartbeat:<name>  STRING  r
    capacities        HASH    r
    decay:<pool>      STRING  r
    sequence          STRING  r
    epoch             STRING  r

  Input:
    KEYS[1]  {<namespace>}
    ARGV[1]  cursor: '0' to begin, then the cursor that the previous call returned
    ARGV[2]  count: about how many workers to list
    ARGV[3]  decays: '1' if bookings decay, otherwise '0'

  Output:
    an array:
      [1]  the cursor for the next call; '0' if all workers were listed
      [2]  the sequence number: how many registrations, requested dispatches, drains and removals there were
      [3]  the id of the data in Redis, as check.lua has set it; '' if it has none
      [4]  the time of Redis in milliseconds
      [5]  an array with one array for each worker, in arbitrary order:
             [1]  name
             [2]  models, a JSON array
             [3]  speed
             [4]  estimated queue length, rounded; at most 10^9
             [5]  '1' if it is multimodal, otherwise '0'
             [6]  '1' if it must send heartbeats, otherwise '0'
             [7]  the number of its registration
             [8]  the age of its last heartbeat or registration in milliseconds
             [9]  the milliseconds until its heartbeat expires; -1 for a worker that sends no heartbeats
             [10] the number of active leases
             [11] its capacity; '' if it is unknown
             [12] '1' if it is draining, otherwise '0'
             [13] 'request' or 'polls' if it is failing, as in report_failure.lua, otherwise ''
             [14] '1' if it has answered a status poll, otherwise '0'
             [15] the queue length that it last reported
             [16] the number of requests that were dispatched to it since, without a lease
             [17] the source of its capacity: 'reported', 'configured', or '' if the capacity is unknown
             [18] the capacity that it reports; '' if it reports none
             [19] the name of the token that registered it; '' without a token
             [20] what include/workers/read_registrations.lua calls its engine
             [21] how many of the requests that it last reported this cluster may have dispatched
             [22] the request-milliseconds that it has spent on these since one of them finished (apply_report.lua)
      [6]  the version of the capacities that were set, as in list_capacities.lua
    error 'INVALID …' if an argument is invalid
]]
--- @include "key"
--- @include "now"
--- @include "read_load"
--- @include "whole_number"
local MAX_QUEUE_LENGTH = 10^9 -- as in controller/domain/worker.py

local cursor, count, decays = ARGV[1], whole_number(ARGV[2], 1), ARGV[3] == "1"
if not cursor:match("^%d+$") or not count then
  return redis.error_reply("INVALID arguments")
end

local time = now()
local step = redis.call("ZSCAN", key("workers"), cursor, "COUNT", count)
local members = step[2] -- each name is followed by its score

local workers = {}
for i = 1, #members, 2 do
  local name = members[i]
  local ttl = redis.call("PTTL", key("heartbeat", name)) -- -2: there is no such key
  local load = read_load(name, decays and time)
  if ttl ~= -2 and load then
    local fields = redis.call("HMGET", load.worker, "models", "speed", "multimodal", "check_heart_beat", "registration",
      "capacity", "polled", "heartbeat_at", "reported", "dispatched_by_lottery", "capacity_source", "reported_capacity",
      "registered_by", "engine", "own", "work")
    local models, speed, multimodal, check_heart_beat, registration, capacity, polled = unpack(fields, 1, 7)
    local heartbeat_at, reported, by_lottery, capacity_source, reported_capacity = unpack(fields, 8, 12)
    -- A worker that an older version of the controller has registered lacks the last four fields.
    capacity_source = capacity_source or (capacity ~= "" and "reported" or "")
    -- Bookings come on top of what the worker reported, which may be the maximum.
    local estimate = load.leased - load.finished + (load.untracked_own_rate or load.untracked)
    local queue_length = string.format("%.0f", math.min(MAX_QUEUE_LENGTH, math.floor(estimate + 0.5)))
    workers[#workers + 1] = {
      name, models, speed, queue_length, multimodal, check_heart_beat, registration,
      math.max(0, time - heartbeat_at), ttl, load.leased, capacity, load.draining and "1" or "0", load.failing or "",
      polled, tonumber(reported), load.dispatched + by_lottery, capacity_source, reported_capacity or capacity,
      fields[13] or "", fields[14] or "", tonumber(fields[15] or 0), fields[16] or "0",
    }
  end
end
local sequence = tonumber(redis.call("GET", key("sequence")) or 0)
local version = tonumber(redis.call("HGET", key("capacities"), "version") or 0)
return { tostring(step[1]), sequence, redis.call("GET", key("epoch")) or "", time, workers, version }
