--[[
  Reconcile Redis with a replica after an outage.

  Takes back the bookings of dispatch calls whose replies were lost, keeps such calls from booking if they run later,
  and books the replica's dispatches from its snapshot.

  Workers that are not alive are skipped. If a worker has reported since a call booked it, at most its bookings since
  the report are taken back, because the report has replaced the rest. If a worker has reported since the replica
  dispatched to it from its snapshot, these requests are counted twice until its next report.

  Keys:
    worker:<name>       HASH    rw
    checkpoints:<name>  STRING  rw
    heartbeat:<name>    STRING  r
    cost_index:<pool>   ZSET    rw
    decay_index:<pool>  ZSET    rw
    cost_heads          HASH    w
    decay_heads         HASH    w
    decay:<pool>        STRING  r
    leases              ZSET    w
    token_leases        HASH    rw
    sequence            STRING  rw
    reply:<request_id>  STRING  rw

  Input:
    KEYS[1]   {<namespace>}
    ARGV[1]   request_id: id of the call; a repeated call with the same id gets the first reply and changes nothing
    ARGV[2]   reply_ttl: the milliseconds for which the replies to this call and to the unanswered ones are kept
    ARGV[3]   sequence: the sequence number that the replica has seen; the count continues from there if Redis lost data
    ARGV[4]   decays: '1' if bookings decay, otherwise '0'
    ARGV[5…]  for each item: id, number
                id: the name of a worker, or the request id of an unanswered dispatch
                number: how many requests were dispatched to the worker; '' for an unanswered dispatch

  Output:
    the number of items that were handled, from the first one on; call again for the others, with another id
    error 'INVALID …' if an argument is invalid, or if an earlier run of this call has failed; nothing was done
]]
--- @include "argument_groups"
--- @include "end_lease"
--- @include "is_alive"
--- @include "key"
--- @include "map_checkpoints"
--- @include "now"
--- @include "read_load"
--- @include "spend"
--- @include "update_cost_index"
--- @include "update_decay_index"
--- @include "whole_number"
--- @include "write_load"
local request_id, reply_ttl = ARGV[1], whole_number(ARGV[2], 1)
local sequence, decays = whole_number(ARGV[3], 0), ARGV[4] == "1"
local items = argument_groups(5, { "id", "number" })
if not reply_ttl or not sequence or not items then
  return redis.error_reply("INVALID arguments")
end
for _, item in ipairs(items) do
  if item.number ~= "" and not whole_number(item.number, 0) then
    return redis.error_reply("INVALID number of requests")
  end
end

local reply = key("reply", request_id)
local earlier = redis.call("GET", reply)
if earlier == "failed" then
  return redis.error_reply("INVALID call: an earlier run of it has failed, so parts of it would be done twice")
elseif earlier then
  return tonumber(earlier)
end
redis.call("SET", reply, "failed", "PX", reply_ttl) -- first: Redis rejects this if its memory is full

local time = now()

-- Change the number of requests that were dispatched to a worker without a lease.
local function change_dispatched(name, change)
  local load = read_load(name, decays and time)
  if not load or not is_alive(name) then
    return
  end
  change = math.max(change, -load.dispatched) -- a report has replaced the others
  if change == 0 then
    return
  end
  load.untracked = math.max(0, load.untracked + change)
  if load.capacity then
    load.untracked_own_rate = math.max(0, load.untracked_own_rate + change)
  end
  load.dispatched = load.dispatched + change
  map_checkpoints(name, function(_, dispatched, leased)
    return math.min(dispatched, load.dispatched), leased -- or a report would acknowledge more than there are
  end)
  write_load(load)
  update_cost_index(load, decays)
  update_decay_index(load, decays and time)
end

-- Take back requests that were drawn by the lottery, which are counted but not booked.
local function take_back_draws(name, number)
  local worker = key("worker", name)
  local drawn = redis.call("HGET", worker, "dispatched_by_lottery")
  if drawn then
    redis.call("HSET", worker, "dispatched_by_lottery", math.max(0, drawn - number))
  end
end

-- Take back the bookings of an unanswered call. If the budget runs out, keep the rest in its reply and return false.
local function take_back(unanswered)
  local unanswered_reply = key("reply", unanswered)
  local kept = redis.call("GET", unanswered_reply)
  local batch = kept and cjson.decode(kept) or { choices = {} }
  local dispatched, left = {}, {}
  local is_over = false
  for i = 1, #batch.choices, 2 do
    local worker, lease = batch.choices[i] or "", batch.choices[i + 1] or ""
    if is_over then
      left[#left + 1] = worker
      left[#left + 1] = lease
    else
      if lease ~= "" then
        end_lease(lease, time, decays, true) -- the request never ran, so no report since contains it
      elseif worker ~= "" then
        dispatched[worker] = (dispatched[worker] or 0) + 1
      end
      is_over = spend(1)
    end
  end
  local is_first = true
  for name, number in pairs(dispatched) do
    if is_over and not is_first then
      for _ = 1, number do
        left[#left + 1] = name
        left[#left + 1] = ""
      end
    elseif batch.books_untracked then
      change_dispatched(name, -number)
    else
      take_back_draws(name, number)
    end
    is_first, is_over = false, spend(1)
  end
  local rest = left[1] and cjson.encode({ choices = left, books_untracked = batch.books_untracked }) or '{"choices":[]}'
  redis.call("SET", unanswered_reply, rest, "PX", reply_ttl)
  return not left[1]
end

local handled = 0
for _, item in ipairs(items) do
  if spend(1) then
    break
  elseif item.number ~= "" then
    change_dispatched(item.id, tonumber(item.number))
  elseif not take_back(item.id) then
    break
  end
  handled = handled + 1
end

if sequence > tonumber(redis.call("GET", key("sequence")) or 0) then
  redis.call("SET", key("sequence"), sequence)
end
redis.call("SET", reply, handled, "PX", reply_ttl)
return handled
