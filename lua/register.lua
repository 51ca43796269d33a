--[[
  Registers workers, or registers them again with all that each says of itself now. They are alive from then on.

  A worker that registers again of its own accord has begun anew: the leases of its life before are over, and what it
  reports is all that it has to do. If it was told to drain, it still drains. Its place among equals is kept.

  Input:
    KEYS[1]   '{<ns>}' the namespace
    ARGV[1]   '1' if bookings fade, else '0'
    ARGV[2]   for how many milliseconds a booking is under way to a worker
    ARGV[3…]  for each worker fourteen:
                request id: a call repeated with it gets the first call's answer and changes nothing
                for how many milliseconds that answer is kept
                its name
                expiration of its heartbeat in milliseconds; '' for a worker that need not send any
                speed; 0 only for a worker without models, such as a cluster that has no workers
                queue length
                '1' if it is multimodal, else '0'
                '' to register in any case; the number of a registration: only if that is still the worker's, which then
                goes on with its life; '0': only if it is not alive and was not removed of late
                models, a JSON array of distinct names
                a digest of the set of its models; '' where there are fewer than two
                capacity: how many requests it runs at once; '' if it does not tell
                how many milliseconds ago it said so
                '1' if it drains in any case, else '0'
                '1' if it is known to have answered a poll, else '0'

  Output:
    an array with one entry a worker, in order; there may be fewer: then call again for the rest
      1   it is new
      0   it was registered
      -1  with a number of a registration: nothing was done
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "alive"
--- @include "assign_pools"
--- @include "clock_of"
--- @include "finite"
--- @include "forget"
--- @include "forgive"
--- @include "index_fading"
--- @include "index_lottery"
--- @include "index_static"
--- @include "join_pools"
--- @include "key"
--- @include "learn"
--- @include "leave_pools"
--- @include "leave_rest"
--- @include "load_of"
--- @include "now"
--- @include "phase"
--- @include "prolong"
--- @include "spend"
--- @include "take_report"
--- @include "whole_number"
--- @include "write_load"
local FIELDS = 14
local fades = ARGV[1] == "1"
local unseen_for = whole_number(ARGV[2], 0)
if not unseen_for or #ARGV < 2 + FIELDS or (#ARGV - 2) % FIELDS ~= 0 then
  return redis.error_reply("INVALID arguments")
end

-- The registration whose arguments begin behind the place `i`, and nil; or nil and what is wrong with it.
local function parse(i)
  local this = {
    reply = key("reply", ARGV[i + 1]),
    keep = whole_number(ARGV[i + 2], 1),
    name = ARGV[i + 3],
    expiration = whole_number(ARGV[i + 4], 1),
    speed_text = ARGV[i + 5],
    speed = finite(ARGV[i + 5]),
    queue_length = whole_number(ARGV[i + 6], 0),
    multimodal = ARGV[i + 7],
    only_if = ARGV[i + 8],
    models_json = ARGV[i + 9],
    models = cjson.decode(ARGV[i + 9]),
    digest = ARGV[i + 10],
    capacity_text = ARGV[i + 11],
    capacity = whole_number(ARGV[i + 11], 1),
    age = whole_number(ARGV[i + 12], 0),
    drains = ARGV[i + 13] == "1",
    polled = ARGV[i + 14],
  }
  if ARGV[i + 4] ~= "" and not this.expiration then
    return nil, "INVALID expiration"
  elseif not this.speed or (this.speed == 0 and #this.models > 0) then
    return nil, "INVALID speed"
  elseif not this.queue_length then
    return nil, "INVALID queue length"
  elseif this.multimodal ~= "0" and this.multimodal ~= "1" then
    return nil, "INVALID kind of worker"
  elseif this.capacity_text ~= "" and not this.capacity then
    return nil, "INVALID capacity"
  elseif (this.digest == "") ~= (#this.models < 2) then
    return nil, "INVALID digest"
  elseif not this.age or not this.keep then
    return nil, "INVALID time"
  elseif (ARGV[i + 13] ~= "0" and not this.drains) or (this.polled ~= "0" and this.polled ~= "1") then
    return nil, "INVALID state"
  end
  for _, model in ipairs(this.models) do
    if type(model) ~= "string" then
      return nil, "INVALID model"
    end
  end
  return this, nil
end

local registrations = {}
for i = 2, #ARGV - 1, FIELDS do
  local this, problem = parse(i)
  if problem then
    return redis.error_reply(problem)
  end
  registrations[#registrations + 1] = this
end

local time = now()

local function is_expected(this, was_alive)
  if this.only_if == "" then
    return true
  end
  local current = was_alive and redis.call("HGET", key("worker", this.name), "registration") or "0"
  return current == this.only_if and (current ~= "0" or redis.call("EXISTS", key("removed", this.name)) == 0)
end

-- The load of a worker that goes on as before, with what it reports now.
local function go_on(load, this)
  forgive(load)
  take_report(load, this.queue_length, time - this.age, unseen_for, time, fades)
  return load
end

-- The load of a worker that begins; `before` is what was known of it, or nil.
local function begin(before, this, registration, draining)
  local worker = key("worker", this.name)
  redis.call("HSET", worker,
    "life", registration,
    "polled", this.polled,
    "reported", this.queue_length,
    "reported_at", time,
    "drawn", 0,
    "own", 0,
    "work", 0)
  local turn = string.format("%.0f", registration) -- the operator .. writes only 14 digits
  return {
    name = this.name,
    worker = worker,
    leased = 0,
    ended = 0,
    unleased = this.queue_length,
    turn = before and before.turn or turn,
    place = before and before.place or turn,
    booked = 0,
    lent = 0,
    done = 0,
    marked_at = 0,
    marks = "",
    draining = draining,
  }
end

local function register(this)
  local answered = redis.call("GET", this.reply)
  if answered then
    return tonumber(answered)
  end
  local name, worker = this.name, key("worker", this.name)
  local was_alive = alive(name)
  if not is_expected(this, was_alive) then
    return -1
  end

  -- The first write is one that a full store refuses; after one that it allows, it would allow all the others too.
  local registration = redis.call("INCR", key("sequence"))
  if not was_alive then
    forget(name)
    redis.call("DEL", key("removed", name))
  end
  local before = load_of(name, fades and time)
  local models_before = before and redis.call("HGET", worker, "models")
  local drained_before = redis.call("DEL", key("draining", name)) == 1 or (before ~= nil and before.draining)
  local draining = drained_before or this.drains

  local pool = assign_pools(this.models, this.digest)
  redis.call("HSET", worker,
    "models", this.models_json,
    "pool", pool,
    "speed", this.speed_text,
    "capacity", this.capacity_text,
    "multimodal", this.multimodal,
    "check_heart_beat", this.expiration and "1" or "0",
    "registration", registration,
    "heartbeat_at", time)
  prolong(name, time, this.expiration)
  local pools = #pool > 1 and { pool } or {}
  for k, model in ipairs(#pool > 1 and {} or this.models) do
    pools[k] = pool .. model
  end
  local clock = clock_of(pools)
  if fades and clock and not draining then
    learn(clock, time, this.speed, 0, 0) -- so that its phase has begun
  end

  local goes_on = was_alive and this.only_if ~= ""
  local load = goes_on and go_on(before, this) or begin(before, this, registration, draining)
  local same_clock = goes_on and clock_of(before.pools) == clock
  local pools_before = before and before.pools or {}
  load.pools = pools
  load.speed = this.speed_text
  load.capacity = this.capacity
  load.expected = load.expected or load.unleased
  if not same_clock then
    local _, _, phase_text = phase(clock, time)
    load.phase = phase_text
  end
  write_load(load, nil, load.marks)

  local joined, left = {}, {}
  for _, each in ipairs(pools) do
    joined[each] = true
  end
  for _, each in ipairs(pools_before) do
    left[#left + 1] = not joined[each] and each or nil
  end
  if left[1] then
    spend(leave_pools(name, load.place, left, cjson.decode(models_before)))
  end
  if clock ~= "\31" then
    leave_rest(name)
  end
  if not load.draining then
    join_pools(load, this.models)
  end
  index_static(load, fades)
  index_fading(load, fades and time)
  index_lottery(load)
  local answer = was_alive and 0 or 1
  redis.call("SET", this.reply, answer, "PX", this.keep)
  return answer
end

local answers = {}
for i, this in ipairs(registrations) do
  answers[i] = register(this)
  if spend(0) then
    break
  end
end
return answers
