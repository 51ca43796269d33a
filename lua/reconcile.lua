--[[
  Settles what happened while a replica could not be sure of the store: takes back what dispatch calls booked whose
  answers never came, sees to it that those of them that are still on their way book nothing, and books what the
  replica dispatched by itself.

  A worker that is not alive is passed over. One that has reported since already counts what it was sent; until its
  next heartbeat it is then believed to be busier than it is.

  A call does no more than its budget allows; what it returned is kept, and a repeated call returns the same.

  Input:
    KEYS[1]   '{<ns>}' the namespace
    ARGV[1]   request id: a call repeated with it does nothing, and returns what the first returned
    ARGV[2]   for how many milliseconds this id, and those of the calls on their way, are remembered
    ARGV[3]   the number of registrations and requested dispatches that the replica has seen; the count goes on from
              there, should the store have lost its memory
    ARGV[4]   '1' if bookings fade, else '0'
    ARGV[5…]  items, two arguments each: a worker's name and how many requests it was sent; or the request id of a call
              without an answer and ''

  Output:
    how many of the items are settled, from the first; call again for the rest, with another id
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "alive"
--- @include "end_lease"
--- @include "index_fading"
--- @include "index_static"
--- @include "key"
--- @include "load_of"
--- @include "mark"
--- @include "now"
--- @include "spend"
--- @include "whole_number"
--- @include "write_load"
local reply = key("reply", ARGV[1])
local keep = whole_number(ARGV[2], 1)
local seen = whole_number(ARGV[3], 0)
local fades = ARGV[4] == "1"
if not keep or not seen or #ARGV < 4 or #ARGV % 2 == 1 then
  return redis.error_reply("INVALID arguments")
end
for i = 6, #ARGV, 2 do
  if ARGV[i] ~= "" and not whole_number(ARGV[i], 0) then
    return redis.error_reply("INVALID number of requests")
  end
end

local settled = redis.call("GET", reply)
if settled then
  return tonumber(settled)
end
redis.call("SET", reply, "0", "PX", keep) -- a full store refuses it, and the rest with it

local time = now()

-- So many requests more, or fewer, were sent to a worker without a lease than the store knew.
local function settle(name, change)
  local load = load_of(name, fades and time)
  if not load or not alive(name) then
    return
  end
  load.unleased = math.max(0, load.unleased + change)
  if load.capacity then
    load.expected = math.max(0, load.expected + change)
  end
  load.booked = math.max(0, load.booked + change)
  local marks = load.marks:gsub("(%d+):(%d+):(%d+);", function(at, booked, lent)
    return mark(at, math.min(booked, load.booked), lent) -- or a report would take more for seen than there are
  end)
  write_load(load, nil, marks)
  index_static(load, fades)
  index_fading(load, fades and time)
end

local function take_back(request_id)
  local answered = redis.call("GET", key("reply", request_id))
  local kept = answered and cjson.decode(answered) or {}
  local booked = {}
  for _, chosen in ipairs(kept.chosen or kept) do
    if chosen and chosen:match("^%d+%-") then
      end_lease(chosen, time, fades)
    elseif chosen and chosen ~= "" and not kept.chosen then -- the lottery books nothing without a lease
      booked[chosen] = (booked[chosen] or 0) + 1
    end
  end
  for name, times in pairs(booked) do
    settle(name, -times)
  end
  redis.call("SET", key("reply", request_id), "[]", "PX", keep)
end

local done = 0
for i = 5, #ARGV, 2 do
  if spend(0) then
    break
  elseif ARGV[i + 1] == "" then
    take_back(ARGV[i])
  else
    settle(ARGV[i], tonumber(ARGV[i + 1]))
  end
  done = done + 1
end

if seen > tonumber(redis.call("GET", key("sequence")) or 0) then
  redis.call("SET", key("sequence"), ARGV[3])
end
redis.call("SET", reply, done, "PX", keep)
return done
