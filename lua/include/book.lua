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
--- @include "write_load"
local function book(load, turn, time, fades, leased)
  local marks
  local since_mark = time - load.marked_at
  if since_mark >= 50 or since_mark < 0 then
    --- @include "mark"
    -- The last 8, and none older than so many can be, or from before the clock was set back: other bookings count as
    -- seen.
    local before = since_mark >= 0 and since_mark < 8 * 50 and load.marks or ""
    before = before:match("^[^;]+;([^;]+;[^;]+;[^;]+;[^;]+;[^;]+;[^;]+;[^;]+;)$") or before -- the last 7 of 8
    marks = before .. mark(time, load.booked, load.lent)
    load.marked_at = time
  end
  load.turn = turn < 1e14 and turn or string.format("%.0f", turn) -- the operator .. writes only 14 digits
  local old_place
  if leased or not fades then
    old_place, load.place = load.place, load.turn
  end
  if leased then
    load.lent = load.lent + 1
    load.leased = load.leased + 1
    write_load(load, nil, marks)
  else
    load.booked = load.booked + 1
    load.unleased = load.unleased + 1
    if load.capacity then
      load.expected = load.expected + 1
    end
    write_load(load, load.more, marks)
  end
  if fades and not leased then
    index_fading(load, time)
  end
  if old_place or load.capacity then
    --- @include "index_static"
    index_static(load, fades, old_place)
  end
end
