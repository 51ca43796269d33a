--[[
  Return a worker that an affinity remembers, if one can be chosen, or else the best worker.

  The most specific key with a worker that can be chosen counts. If it has several, the one with the lowest cost is
  chosen. A worker can be chosen if it is alive, serves the model, is not draining or failing, and is not overloaded.

  It is overloaded if its cost exceeds 1.25 times that of the best worker by more than a few requests: a quarter of its
  capacity, but 2 to 8, or 2 without a known capacity. These are divided by the number of workers that the key
  remembers. A beginning that MAX_REMEMBERED workers have in their caches is a reason for none of them, so they are
  overloaded if they cost more than the best worker. A worker without a free slot is overloaded while the best one has a
  free slot. If neither has one, their expected waits are compared in the same way. The reference model is
  tests/model/affinity.py.

  Input:
    affinity    as include/arguments/parse_affinity.lua returns it. This function adds `gone`: a table with true for the
                name of each worker that cannot be chosen for a reason other than its load
    best        the load of the best worker
    pools       the names of the pools of the model
    time        the time
    decay_time  the time; nil if bookings do not decay

  Output:
    the load of the worker
    'hit' if it is remembered, otherwise why no remembered worker was chosen: 'overloaded', 'gone' if all of them are
    gone, fail, drain or serve the model no more, 'new' if there is none
]]
--- @include "constants"
--- @include "cost_of"
--- @include "is_alive"
--- @include "read_load"
--- @include "remembered_workers"
local function prefer_remembered(affinity, best, pools, time, decay_time)
  local FACTOR, MAX_READ = 1.25, 8
  local MAX_REMEMBERED = 4 -- as in include/affinity/remember_worker.lua
  local lowest = cost_of(best, best.untracked, best.untracked_own_rate)
  local is_pool = {}
  for _, pool in ipairs(pools) do
    is_pool[pool] = true
  end

  local function serves_model(load)
    for _, pool in ipairs(load.pools) do
      if is_pool[pool] then
        return true
      end
    end
    return false
  end

  local loads, costs, gone, number_read = {}, {}, {}, 0 -- by name

  -- Return the load of a worker if it can be chosen unless it is overloaded.
  local function load_of(name)
    if not loads[name] and not gone[name] then
      number_read = number_read + 1
      local load = name == best.name and best or read_load(name, decay_time)
      if not load or load.draining or load.failing or not serves_model(load) or not is_alive(name) then
        gone[name] = true
      else
        loads[name], costs[name] = load, cost_of(load, load.untracked, load.untracked_own_rate)
      end
    end
    return loads[name]
  end

  local function is_overloaded(load, number)
    local cost, capacity = costs[load.name], load.capacity
    if number >= MAX_REMEMBERED then
      return cost > lowest
    end
    local extra = (capacity and math.max(2, math.min(capacity / 4, 8)) or 2) / number
    if cost >= FULL and lowest >= FULL then
      return cost - FULL > FACTOR * (lowest - FULL) + extra / (capacity * load.speed)
    end
    return cost > math.min(FACTOR * lowest + extra / load.speed, MAX_SERVING)
  end

  affinity.gone = gone
  local outcome = "new"
  for _, names in ipairs(remembered_workers(affinity, time)) do
    if number_read >= MAX_READ then
      break
    elseif names then
      local found, chosen = {}, nil
      for name in names:gmatch("[^\n]+") do
        found[#found + 1] = load_of(name)
      end
      for _, load in ipairs(found) do
        if (not chosen or costs[load.name] < costs[chosen.name]) and not is_overloaded(load, #found) then
          chosen = load
        end
      end
      if chosen then
        return chosen, "hit"
      elseif found[1] then
        outcome = "overloaded"
      elseif outcome == "new" then
        outcome = "gone"
      end
    end
  end
  return best, outcome
end
