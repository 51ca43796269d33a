--[[
  What is known of a worker's load, with what has faded since it was written taken off.
  The rule in Python: controller/domain/load.py, Load.

  Input:
    name  the worker's name
    time  the time; nil or false where bookings do not fade

  Output: a table; nil if there is no such worker. It is written by include/write_load.lua. Its numbers are
  text as long as nobody has changed them, because to make text of a number takes time: compare none without tonumber().
]]
--- @include "key"
--- @include "phase"
local models_of = {} -- by their JSON: in a batch the same again and again

local function load_of(name, time)
  local worker = key("worker", name)
  local fields = redis.call("HMGET", worker, "load", "models")
  local text, json = fields[1], fields[2]
  if not text then
    return nil
  end
  local unleased, expected, phase_then, turn, booked, speed, capacity, leased, ended, place, lent, done, why, drains,
    marked_at, marks = text:match("(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) "
    .. "(%S+) (%S*)")
  local models = models_of[json]
  if not models then
    local is_json, decoded = pcall(cjson.decode, json) -- what one worker's is must not keep others from being served
    models = is_json and decoded or {}
    models_of[json] = models
  end
  capacity = capacity ~= "-" and capacity or nil
  local phase_now, pace, phase_text = 0, 1, "0"
  if time then
    phase_now, pace, phase_text = phase(models[1], time)
  end
  local faded = math.min(0, phase_then - phase_now)
  unleased = unleased * math.exp(faded)
  return {
    name = name,
    worker = worker,
    models = models,
    speed = speed,
    capacity = capacity,
    leased = leased,
    ended = ended,
    unleased = unleased,
    expected = capacity and expected * math.exp(faded * pace * speed) or unleased,
    phase = phase_text,
    turn = turn,
    place = place,
    booked = booked,
    lent = lent,
    done = done,
    failing = why ~= "-" and why,
    draining = drains == "1",
    marked_at = marked_at,
    marks = marks,
  }
end
