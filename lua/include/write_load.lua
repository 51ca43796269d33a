--[[
  Writes a worker's load: one field of its hash, because a dispatch reads and writes all of it, and one for the marks,
  which change less often.

  Input:
    load   as include/load_of.lua gives it
    more   the second half of the field as it was read, where nothing of it has changed; else nil
    marks  the marks, where they have changed; else nil

  The field "load", its parts with a space between them:
    unleased, expected, phase     as in controller/domain/load.py; expected is '-' where no capacity is told
    turn                          number of the choice that was its last, or of its registration
    place                         the turn in its member of the first index
    booked                        how many were booked without a lease since its last report
    marked at                     the time of the last mark
    speed
  and, left out where there are no leases, no capacity is told, and it neither fails nor drains:
    leased, ended                 leases that are out; of them ended
    lent, done                    leased since its last report, and still out; ended
    capacity                      '-' if it does not tell that
    why it fails                  'request', 'polls', or '-'
    drains                        '1' or '0'

  The field "marks": marks, as include/mark.lua makes them.
]]
local function write_load(load, more, marks)
  if not more then
    more = ""
    if load.capacity or load.failing or load.draining or load.leased + load.lent + load.done > 0 then
      more = load.leased .. " " .. load.ended .. " " .. load.lent .. " " .. load.done .. " " .. (load.capacity or "-")
        .. " " .. (load.failing or "-") .. (load.draining and " 1" or " 0")
    end
  end
  local text = load.unleased .. " " .. (load.capacity and load.expected or "-") .. " " .. load.phase .. " " .. load.turn
    .. " " .. load.place .. " " .. load.booked .. " " .. load.marked_at .. " " .. load.speed .. " " .. more
  if marks then
    redis.call("HSET", load.worker, "load", text, "marks", marks)
  else
    redis.call("HSET", load.worker, "load", text)
  end
end
