--[[
  Chooses a worker for each of a batch of requests, one after the other: at random among the live ones that serve, with
  a probability proportional to speed. If all fail, it chooses among those, with the same odds. Nothing is booked, as in
  FastChat, but for a request with a lease; how many were drawn without is counted, for what reports tell.

  A draw chooses a band of speeds, a place in the band and a fraction of the speed of the fastest worker there. The
  worker at that place is chosen if its speed exceeds the fraction. Otherwise another draw decides, which less than half
  of the draws lead to.
  The rule in Python: controller/domain/dispatch.py, lottery().

  If a dead worker is drawn, another draw decides, and the call forgets the worker before it ends. A call forgets no
  more than about MAX_REMOVED index entries.

  Input:
    KEYS[1]   '{<ns>}' the namespace
    ARGV[1]   request id: a call repeated with it gets the first call's answer and draws nothing
    ARGV[2]   for how many milliseconds the answer is kept
    ARGV[3]   '1' if bookings fade, else '0'
    ARGV[4…]  for each request three: the model; for how many milliseconds a lease is wanted, 0 for none; a draw from
              the uniform distribution on [0, 1)

  Output:
    an array with one entry a request, in order:
      the name of the chosen worker; with a lease, the lease, which ends in '@' and the name
      '' if the model has no live worker
      nil if the budget of this call did not suffice: ask again, with another id
    error 'INVALID …' if an argument cannot be; nothing was done
]]
--- @include "book"
--- @include "finite"
--- @include "key"
--- @include "lend"
--- @include "load_of"
--- @include "now"
--- @include "spend"
--- @include "whole_number"
local MAX_REMOVED = 256

local reply = key("reply", ARGV[1])
local keep = whole_number(ARGV[2], 1)
local fades = ARGV[3] == "1"
if not keep or #ARGV < 6 or #ARGV % 3 ~= 0 then
  return redis.error_reply("INVALID arguments")
end
for i = 5, #ARGV, 3 do
  local draw = finite(ARGV[i + 1])
  if not whole_number(ARGV[i], 0) or not draw or draw >= 1 then
    return redis.error_reply("INVALID request")
  end
end

-- One call reads the answer and what the first request needs, which is mostly the only one.
local read = redis.call("MGET", reply, key("pools", ARGV[4]), key("odds", ARGV[4]))
if read[1] then
  local kept = cjson.decode(read[1])
  return kept.chosen or kept -- settle.lua leaves an empty one
end

local time = now()
local forgotten = 0

local pools_by_model = { [ARGV[4]] = not read[2] and { ARGV[4] } or nil }
local odds_of = { [key("lottery", ARGV[4])] = read[3] or nil } -- by index, as include/count_odds.lua gives them

local function pools_for(model)
  local pools = pools_by_model[model]
  if not pools then
    --- @include "pools_of"
    pools = pools_of(model)
    pools_by_model[model] = pools
  end
  return pools
end

local function odds_for(kind, pool, cached)
  local index = key(kind, pool)
  local odds = odds_of[index] or cached
  if not odds then
    --- @include "count_odds"
    odds = count_odds(kind, pool)
  end
  odds_of[index] = odds
  return odds
end

-- One of several pools, by the weight of each, and what is left of the draw for a choice within it; nil if none of them
-- has a worker.
local function draw_pool(kind, pools, draw)
  if #pools == 1 then
    return odds_for(kind, pools[1]) ~= "" and pools[1] or nil, draw
  end
  local weights, all, cached = {}, 0, {}
  if kind == "lottery" and not odds_of[key(kind, pools[#pools])] then
    local names = {}
    for i, pool in ipairs(pools) do
      names[i] = key("odds", pool)
    end
    cached = redis.call("MGET", unpack(names))
    spend(#pools)
  end
  for i, pool in ipairs(pools) do
    weights[i] = tonumber(odds_for(kind, pool, cached[i]):match("%S+") or 0)
    all = all + weights[i]
  end
  local rest, last = draw * all, nil
  for i, pool in ipairs(pools) do
    if weights[i] > 0 then
      if rest < weights[i] then
        return pool, rest / weights[i]
      end
      rest, last = rest - weights[i], pool
    end
  end
  return last, 0 -- by rounding, or because there is none
end

-- A place in an index, and the speed that the worker there must exceed.
local function place_of(draw, odds)
  local weight, bands = odds:match("(%S+)(.*)")
  local rest = draw * weight
  for top, first, size in bands:gmatch("(%S+) (%S+) (%S+)") do
    if rest < size * top or first == "0" then
      local place = math.min(math.floor(rest / top), size - 1)
      return first + place, rest - place * top
    end
    rest = rest - size * top
  end
end

-- The next number of a sequence, for a repeated draw: the "minimal standard" (Park, Miller and Stockmeyer, 1993).
local function next_draw(draw)
  local state = math.floor(draw * 2147483646) + 1
  return (state * 48271 % 2147483647 - 0.5) / 2147483646
end

local dead, is_dead = {}, {} -- drawn, but not forgotten yet: to forget one takes a new count of the odds

local function forget_dead()
  --- @include "forget"
  --- @include "leave_lottery"
  while dead[1] and forgotten < MAX_REMOVED do
    local pool, name = unpack(table.remove(dead))
    is_dead[name] = nil
    forgotten = forgotten + forget(name)
    leave_lottery(pool, name) -- should its hash be gone, forget() did not find it
  end
  odds_of, pools_by_model = {}, {}
end

-- A live worker of a model's indexes of a kind; "" if there is none, false over the budget.
local function draw_from(kind, model, draw)
  while true do
    local pool, rest = draw_pool(kind, pools_for(model), draw)
    if not pool then
      return ""
    end
    local index = key(kind, pool)
    local place, exceeded_speed = place_of(rest, odds_of[index])
    local entry = redis.call("ZRANGE", index, place, place, "WITHSCORES")
    local name = entry[1]
    if not name then -- the index was deleted by hand
      redis.call("DEL", key("odds", pool))
      odds_of = {}
    elseif exceeded_speed < tonumber(entry[2]) then
      if is_dead[name] or #dead >= MAX_REMOVED then
        forget_dead()
        if forgotten >= MAX_REMOVED then
          return false
        end
      elseif redis.call("EXISTS", key("heartbeat", name), key("worker", name)) == 2 then
        return name
      else
        dead[#dead + 1] = { pool, name }
        is_dead[name] = true
      end
    end
    draw = next_draw(draw)
  end
end

-- A worker that serves or, if none is alive, one that fails; "" if there is none, false over the budget.
local function draw_one(model, draw)
  local name = draw_from("lottery", model, draw)
  if name == "" then
    name = draw_from("lottery_failing", model, draw)
  end
  return name
end

local drawn = {} -- without a lease, by worker

local function choose(model, lease_time, draw, turn)
  local name = draw_one(model, draw)
  if not name or name == "" then
    return name
  elseif lease_time == 0 then
    drawn[name] = (drawn[name] or 0) + 1
    return name
  end
  local load = load_of(name, fades and time)
  local lease = lend(load, lease_time, turn, time)
  book(load, turn, time, fades, true)
  return lease
end

local requests = #ARGV / 3 - 1
local leased = false
for i = 1, requests do
  leased = leased or tonumber(ARGV[2 + 3 * i]) > 0
end
if leased then
  --- @include "end_overdue_leases"
  end_overdue_leases(time, fades, 64 + requests) -- more than this call may lend
end
local turn = leased and redis.call("INCRBY", key("sequence"), requests) - requests or 0 -- nothing else has one
local chosen = {}
for i = 1, requests do
  local model, lease_time, draw = ARGV[1 + 3 * i], tonumber(ARGV[2 + 3 * i]), tonumber(ARGV[3 + 3 * i])
  local affordable = i == 1 or not spend(1)
  chosen[i] = affordable and choose(model, lease_time, draw, turn + i) or false -- which is nil in the answer
end
if dead[1] then
  forget_dead()
end
for name, times in pairs(drawn) do
  local worker = key("worker", name)
  redis.call("HSET", worker, "drawn", (redis.call("HGET", worker, "drawn") or 0) + times)
end
redis.call("SET", reply, cjson.encode({ chosen = chosen }), "PX", keep) -- and not booked, but for the leases
return chosen
