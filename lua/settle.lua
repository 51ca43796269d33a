--[[
  Settles what happened while a replica could not be sure of the store: takes back what dispatch calls booked whose
  answers never came, sees to it that those of them that are still on their way book nothing, and books what the
  replica dispatched by itself.

  A worker that is not alive is passed over. One that has reported since already counts what it was sent; until its
  next heartbeat it is then believed to be busier than it is.

  Input:
    KEYS[1]   '{<ns>}' the namespace
    ARGV[1]   request id: a call repeated with it does nothing
    ARGV[2]   for how many milliseconds this id, and those of the calls on their way, are remembered
    ARGV[3]   the number of registrations and requested dispatches that the replica has seen; the count goes on from
              there, should the store have lost its memory
    ARGV[4]   the request ids of the calls without an answer, a JSON array
    ARGV[5]   '1' if bookings fade, else '0'
    ARGV[6…]  for each worker two: its name, how many requests it was sent

  Output:
    1  it is settled
    0  it was settled by an earlier call
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
--- @include "whole_number"
--- @include "write_load"
local reply = key("reply", ARGV[1])
local keep = whole_number(ARGV[2], 1)
local seen = whole_number(ARGV[3], 0)
local unanswered = cjson.decode(ARGV[4])
local fades = ARGV[5] == "1"
if not keep or not seen then
  return redis.error_reply("INVALID arguments")
end
if #ARGV % 2 == 0 then
  return redis.error_reply("INVALID number of arguments")
end
for i = 7, #ARGV, 2 do
  if not whole_number(ARGV[i], 0) then
    return redis.error_reply("INVALID number of requests")
  end
end

if redis.call("EXISTS", reply) == 1 then
  return 0
end
redis.call("SET", reply, "1", "PX", keep)

local time = now()
local change = {}
local names = {}
local function add(name, number)
  if not change[name] then
    change[name] = 0
    names[#names + 1] = name
  end
  change[name] = change[name] + number
end

for _, request_id in ipairs(unanswered) do
  local answered = redis.call("GET", key("reply", request_id))
  local kept = answered and cjson.decode(answered) or {}
  for _, chosen in ipairs(kept.chosen or kept) do
    if chosen and chosen:match("^%d+%-") then
      end_lease(chosen, time, fades)
    elseif chosen and chosen ~= "" and not kept.chosen then -- the lottery books nothing without a lease
      add(chosen, -1)
    end
  end
  redis.call("SET", key("reply", request_id), "[]", "PX", keep)
end
for i = 6, #ARGV, 2 do
  add(ARGV[i], tonumber(ARGV[i + 1]))
end

for _, name in ipairs(names) do
  local load = load_of(name, fades and time)
  if load and alive(name) then
    load.unleased = math.max(0, load.unleased + change[name])
    if load.capacity then
      load.expected = math.max(0, load.expected + change[name])
    end
    load.booked = math.max(0, load.booked + change[name])
    local marks = load.marks:gsub("(%d+):(%d+):(%d+);", function(at, booked, lent)
      return mark(at, math.min(booked, load.booked), lent) -- or a report would take more for seen than there are
    end)
    write_load(load, nil, marks)
    index_static(load, fades)
    index_fading(load, fades and time)
  end
end

if seen > tonumber(redis.call("GET", key("sequence")) or 0) then
  redis.call("SET", key("sequence"), ARGV[3])
end
return 1
