--[[
  Read the load of a worker, and decay its untracked load to the present.

  A worker's hash has a field for each part of the load:
    pools                  the names of its pools, with a line break between them
    speed                  as registered
    capacity               how many requests it runs at once; '' if that is unknown (decide_capacity.lua)
    untracked              requests without a lease, decayed at the rate of its decay clock
    untracked_own_rate     the same, decayed at the worker's own rate; '' without a capacity
    decayed_at             the reading of the decay clock at which both had these values
    seq                    the sequence number of the last dispatch to it, or of its registration
    index_seq              the sequence number in its member of the cost index
    dispatched             requests dispatched without a lease since its last report
    checkpoint_at          the time of the last checkpoint (include/load/add_checkpoint.lua)
    failing                'request' or 'polls' if it is failing, otherwise ''
    draining               '1' if it is draining, '2' if its own agent drained it, otherwise '0'
    extended               '1' if include/load/is_extended.lua says so, otherwise '0'
    leases                 these six counts, as include/leases/lease_counts.lua writes them:
      leased                 active leases
      finished               those of them that have finished by its last report
      leased_since_report    active leases that no report has acknowledged
      released_since_report  leases that have ended since its last report and that no report has acknowledged
      least, peak            the fewest and the most active leases at any time since its last report, or since
                             `peak_since` for an engine (include/load/range_of_leases.lua)

  The reference model is Load in tests/model/load.py.

  Input:
    name  the worker's name
    time  the time; nil or false if bookings do not decay

  Output: a table with these parts and with `name` and `worker`, the key of its hash; nil if there is no such worker.
  capacity, untracked_own_rate, failing and draining are nil where they do not apply. decayed_at, seq, index_seq,
  dispatched, checkpoint_at and speed may be text, so use tonumber() before a comparison.
]]
--- @include "decay_clock"
--- @include "key"
--- @include "parse_pools_when_read" when called
--- @include "spend"
local function read_load(name, time)
  local worker = key("worker", name)
  spend(3)
  local fields = redis.call("HMGET", worker, "pools", "untracked", "decayed_at", "seq", "index_seq", "dispatched",
    "checkpoint_at", "speed", "leases", "extended")
  local text, untracked, reading = fields[1], fields[2], fields[3]
  if not untracked then
    return nil
  end
  local is_overflow = text:byte() == 31
  local pool = text ~= "" and text or nil -- the only one, unless it is an overflow pool
  local decay, rate = 0, 1
  if time then
    local current, current_text
    local clock = is_overflow and (text:byte(2) == 29 and "\31\29" or "\31") or pool -- as decay_clock_of() returns it
    current, rate, current_text = decay_clock(clock, time)
    decay = reading - current
    if decay <= 0 or decay >= 2e9 then -- it has started again (include/decay/learn_decay.lua)
      reading = current_text
    end -- otherwise the clock of Redis was set back: there is no decay until that time comes again, or a report does
    decay = math.min(decay, 0)
  end
  local load = { -- at most 16 parts for most workers, because the 17th would double the cost of the table
    name = name,
    worker = worker,
    pools = not is_overflow and { pool } or nil,
    untracked = untracked * math.exp(decay),
    decayed_at = reading,
    seq = fields[4],
    index_seq = fields[5],
    dispatched = fields[6],
    checkpoint_at = fields[7],
    speed = fields[8],
    leased = 0,
    finished = 0,
    leased_since_report = 0,
    released_since_report = 0,
    least = 0,
    peak = 0,
  }
  if is_overflow then
    parse_pools_when_read(load, text)
  end
  if fields[9] ~= "" then
    local leased, finished, leased_since, released_since, least, peak =
      fields[9]:match("(%d+) (%d+) (%d+) (%d+) ?(%d*) ?(%d*)")
    load.leased, load.finished = leased + 0, finished + 0
    load.leased_since_report, load.released_since_report = leased_since + 0, released_since + 0
    load.least, load.peak = tonumber(least) or 0, tonumber(peak) or load.leased -- 0.2.0 does not write them
  end
  if fields[10] == "1" then
    fields = redis.call("HMGET", worker, "capacity", "untracked_own_rate", "failing", "draining")
    if fields[1] ~= "" then
      load.capacity = fields[1] + 0
      load.untracked_own_rate = fields[2] * math.exp(decay * rate * load.speed)
    end
    load.failing = fields[3] ~= "" and fields[3] or nil
    load.draining = fields[4] ~= "0" and fields[4] or nil
  end
  return load
end
