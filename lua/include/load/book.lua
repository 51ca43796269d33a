--[[
  Book a request for a worker, with a lease or without.
  The reference model is Load.book() in tests/model/load.py.

  Input:
    load    as include/load/read_load.lua returns it
    seq     the sequence number of the dispatch
    time    the time
    decays  true if bookings decay
    leased  true if the request has a lease
]]
--- @include "add_checkpoint"
--- @include "constants"
--- @include "lease_counts" when called
--- @include "update_cost_index" when called
--- @include "update_decay_index"
--- @include "write_untracked" when called
local function book(load, seq, time, decays, leased)
  local since_checkpoint = time - load.checkpoint_at
  if since_checkpoint >= CHECKPOINT_MS or since_checkpoint < 0 then
    add_checkpoint(load, time)
  end
  load.seq = seq
  local old_index_seq
  if leased or not decays then
    old_index_seq, load.index_seq = load.index_seq, seq
  end
  if leased then
    load.leased = load.leased + 1
    load.leased_since_report = load.leased_since_report + 1
    load.peak = math.max(load.peak, load.leased)
    redis.call("HSET", load.worker, "seq", seq, "index_seq", seq, "checkpoint_at", load.checkpoint_at,
      "leases", lease_counts(load))
    if load.capacity then
      write_untracked(load)
    end
  else
    load.untracked = load.untracked + 1
    load.dispatched = load.dispatched + 1
    redis.call("HSET", load.worker, "seq", seq, "untracked", load.untracked, "decayed_at", load.decayed_at,
      "dispatched", load.dispatched, "checkpoint_at", load.checkpoint_at)
    if load.capacity then
      load.untracked_own_rate = load.untracked_own_rate + 1
      write_untracked(load)
    end
    if decays then
      update_decay_index(load, time)
    else
      redis.call("HSET", load.worker, "index_seq", seq)
    end
  end
  if old_index_seq or load.capacity then
    update_cost_index(load, decays, old_index_seq)
  end
end
