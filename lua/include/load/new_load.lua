--[[
  Return the load of a worker that begins a new incarnation: it has what it reports, and no lease.

  Input:
    registration  as include/workers/read_registrations.lua returns it
    before        its load until now, as include/load/read_load.lua returns it, or nil
    number        the sequence number of the registration
    time          the time

  Output: the load; the other fields of its hash that start again, as arguments of HSET. A new worker is behind all
  others of the same cost. One that was known keeps its order.
]]
--- @include "key"
local function new_load(registration, before, number, time)
  local load = {
    name = registration.name,
    worker = key("worker", registration.name),
    untracked = registration.queue_length,
    untracked_own_rate = registration.queue_length,
    seq = before and before.seq or number,
    index_seq = before and before.index_seq or number,
    dispatched = 0,
    checkpoint_at = 0,
    leased = 0,
    finished = 0,
    leased_since_report = 0,
    released_since_report = 0,
    least = 0,
    peak = 0,
  }
  redis.call("DEL", key("checkpoints", registration.name))
  local fields = {
    "incarnation", number,
    "reported_at", time,
    "reported", registration.queue_length,
    "polled", registration.polled or "0",
    "dispatched_by_lottery", 0,
    "own", 0,
    "work", 0,
  }
  if registration.engine ~= "" then -- include/load/apply_report.lua
    fields[#fields + 1], fields[#fields + 2] = "least_before", 0
    fields[#fields + 1], fields[#fields + 2] = "peak_before", 0
    fields[#fields + 1], fields[#fields + 2] = "peak_since", time
  end
  return load, fields
end
