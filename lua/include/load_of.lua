--[[
  What is known of a worker's load, with what has faded since it was written taken off.
  The rule in Python: controller/domain/load.py, Load.

  Input:
    name  the worker's name
    time  the time; nil or false where bookings do not fade
    pool  a pool that it is in, if one is known: most workers serve one model, and then there is nothing to decode

  Output: a table; nil if there is no such worker. It is written by include/write_load.lua, which tells its parts.
  expected and capacity are nil where no capacity is told, failing and draining where it does not.
  turn, place, booked, marked_at, speed and phase are text as long as nobody has changed them, because to make text of a
  number takes time: compare none of them without tonumber(). A turn or place of 15 digits or more is always text.
]]
--- @include "clock_of"
--- @include "key"
--- @include "phase"
--- @include "spend"
local last_models, last_pools -- in a batch mostly the same again

local function load_of(name, time, pool)
  local worker = key("worker", name)
  spend(3)
  local fields = redis.call("HMGET", worker, "load", "marks", "pool", "models")
  local text, written, models = fields[1], fields[3], fields[4]
  if not text then
    return nil
  end
  local pools
  if #written > 1 then
    pools = { written }
  elseif written == "" and pool and models == '["' .. pool .. '"]' then
    pools = { pool }
  elseif written .. models == last_models then
    pools = last_pools
  else
    local is_json, names = pcall(cjson.decode, models) -- what one worker's is must not keep others from being served
    pools = is_json and names or {}
    for i, model in ipairs(pools) do
      pools[i] = written .. model
    end
    last_models, last_pools = written .. models, pools
  end
  local unleased, expected, phase_then, turn, place, booked, marked_at, speed, more =
    text:match("(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) ?(.*)")
  local phase_now, pace, phase_text = phase_then, 1, phase_then -- as it was, for replicas where bookings fade
  if time then
    phase_now, pace, phase_text = phase(clock_of(pools), time)
  end
  local faded = phase_then - phase_now
  if faded > 0 then
    if faded < 2e9 then -- the clock was set back: it does not fade until that time comes again, or a report does
      phase_text = phase_then
    end -- else the phase has started again (include/learn.lua)
    faded = 0
  end
  local load = { -- no more than 16 parts, which most workers have: a 17th would double what the table costs
    name = name,
    worker = worker,
    pools = pools,
    unleased = unleased * math.exp(faded),
    phase = phase_text,
    turn = turn,
    place = place,
    booked = booked,
    marked_at = marked_at,
    speed = speed,
    more = more,
    leased = 0,
    ended = 0,
    lent = 0,
    done = 0,
    marks = fields[2],
  }
  if more ~= "" then
    local leased, ended, lent, done, capacity, why, drains =
      more:match("(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+)")
    load.leased, load.ended, load.lent, load.done = leased + 0, ended + 0, lent + 0, done + 0
    load.failing = why ~= "-" and why or nil
    load.draining = drains == "1"
    if capacity ~= "-" then
      load.capacity = capacity + 0
      load.expected = expected * math.exp(faded * pace * speed)
    end
  end
  return load
end
