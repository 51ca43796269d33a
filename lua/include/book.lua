--[[
  Books a request for a worker, with a lease or without.

  Now and then it marks how many were booked before, so that a report can tell which of them its worker has seen.
  The rule in Python: controller/domain/load.py, Load.book().

  Input:
    load    as include/load_of.lua gives it
    turn    the number of this choice
    time    the time
    fades   whether bookings fade
    leased  whether it goes with a lease
]]
--- @include "index_fading"
--- @include "index_static"
--- @include "write_load"
local function book(load, turn, time, fades, leased)
  if time >= load.marked_at + 50 then
    load.marks = load.marks .. time .. ":" .. load.booked .. ":" .. load.lent .. ";"
    load.marked_at = time
    if select(2, load.marks:gsub(";", "")) > 8 then
      load.marks = load.marks:match(";(.*)$") -- so few: of a busy worker the older bookings count as seen
    end
  end
  load.turn = turn
  local old_place = load.place
  if leased then
    load.lent = load.lent + 1
    load.leased = load.leased + 1
    load.place = turn
  else
    load.booked = load.booked + 1
    load.unleased = load.unleased + 1
    load.expected = load.expected + 1
    if not fades then
      load.place = turn
    end
  end
  write_load(load)
  if load.place ~= old_place then
    index_static(load, fades, old_place)
  else
    index_fading(load, time)
  end
end
