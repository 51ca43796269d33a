--[[
  Writes a worker's load: one field of its hash, because a dispatch reads and writes all of it.

  Input:
    load  as include/load_of.lua gives it

  The field, its parts with a space between them:
    unleased, expected, phase     as in controller/domain/load.py
    turn                          number of the choice that was its last, or of its registration
    booked                        how many were booked without a lease since its last report
    speed, capacity               '-' if it does not tell that
    leased, ended                 leases that are out; of them ended
    place                         the turn in its member of the first index
    lent, done                    leased since its last report, and still out; ended
    why it fails                  'request', 'polls', or '-'
    drains                        '1' or '0'
    marked at, marks              the time of the last mark; for each '<time>:<booked>:<lent>;' (include/book.lua)
]]
local function write_load(load)
  local unleased = load.unleased .. ""
  redis.call("HSET", load.worker, "load", unleased .. " "
    .. (load.expected == load.unleased and unleased or load.expected) .. " " .. load.phase .. " " .. load.turn .. " "
    .. load.booked .. " " .. load.speed .. " " .. (load.capacity or "-") .. " " .. load.leased .. " " .. load.ended
    .. " " .. load.place .. " " .. load.lent .. " " .. load.done .. " " .. (load.failing or "-")
    .. (load.draining and " 1 " or " 0 ") .. load.marked_at .. " " .. load.marks)
end
