--[[
  Drain workers or resume them. A draining worker gets no new requests, but it is listed and sends heartbeats as before.

  The agent of an engine drains the engine before the agent ends. It resumes the engine when it starts again, unless an
  operator has drained the engine, too.

  Keys:
    workers                 ZSET    w
    worker:<name>           HASH    rw
    checkpoints:<name>      STRING  w
    heartbeat:<name>        STRING  rw
    draining:<name>         STRING  w
    models                  SET     w
    pools:<model>           STRING  rw
    overflow                SET     rw
    cost_index:<pool>       ZSET    rw
    decay_index:<pool>      ZSET    rw
    cost_heads              HASH    w
    decay_heads             HASH    w
    decay:<pool>            STRING  rw
    lottery:<pool>          ZSET    w
    lottery_failing:<pool>  ZSET    w
    odds:<pool>             STRING  w
    token_workers           HASH    rw
    sequence                STRING  rw
    reply:<request_id>      STRING  rw
    events                  STREAM  w

  Input:
    KEYS[1]   {<namespace>}
    ARGV[1]   request_id: id of the call; a repeated call with the same id gets the first reply and changes nothing
    ARGV[2]   reply_ttl: the milliseconds for which the reply is kept
    ARGV[3]   decays: '1' if bookings decay, otherwise '0'
    ARGV[4…]  for each worker: name, drain, by_agent, by, reason
                name: the worker's name
                drain: '1' to drain it, '0' to resume
                by_agent: '1' for a call of its own agent, which resumes only what an agent drained, otherwise '0'
                by: who does it, for the event
                reason: why, for the event; '' for no reason

  Output:
    an array with one entry for each worker, in order; if there are fewer, call again for the rest
      1  the worker is draining, or was resumed, or an agent is not allowed to resume it
      0  there is no such live worker
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "argument_groups"
--- @include "assign_pools"
--- @include "decay_clock"
--- @include "decay_clock_of"
--- @include "handle_each"
--- @include "is_alive"
--- @include "join_pools"
--- @include "key"
--- @include "learn_decay"
--- @include "leave_overflow"
--- @include "leave_pools"
--- @include "now"
--- @include "purge_worker" when called
--- @include "read_load"
--- @include "record_event"
--- @include "record_models"
--- @include "run_once"
--- @include "spend"
--- @include "update_cost_index"
--- @include "update_decay_index"
--- @include "update_lottery"
--- @include "whole_number"
--- @include "write_load"
local request_id, reply_ttl, decays = ARGV[1], whole_number(ARGV[2], 1), ARGV[3] == "1"
local calls = argument_groups(4, { "name", "drain", "by_agent", "by", "reason" })
if not reply_ttl or not calls or not calls[1] then
  return redis.error_reply("INVALID arguments")
end
for _, call in ipairs(calls) do
  if (call.drain ~= "0" and call.drain ~= "1") or (call.by_agent ~= "0" and call.by_agent ~= "1") then
    return redis.error_reply("INVALID state")
  end
end

local time = now()

local function set_draining(call)
  local name, drain, by_agent = call.name, call.drain == "1", call.by_agent == "1"
  local load = read_load(name, decays and time)
  local is_registered = load and is_alive(name)
  if by_agent and not drain and (not is_registered or load.draining ~= "2") then
    return is_registered and 1 or 0
  end
  if not drain then
    if not is_registered then
      spend(purge_worker(name)) -- or it would drain again when it registers
    end
    redis.call("DEL", key("draining", name))
  end
  if not is_registered then
    return 0
  end
  if drain and load.draining and (by_agent or load.draining == "1") or not drain and not load.draining then
    return 1
  end

  redis.call("INCR", key("sequence")) -- so that replicas notice if Redis loses this change
  local was_draining = load.draining
  load.draining = drain and (by_agent and "2" or "1") or nil
  if drain and was_draining then -- an operator drains what an agent drained
    redis.call("HSET", load.worker, "draining", load.draining)
    record_event("worker_draining", "worker", name, "by", call.by, "reason", call.reason)
    return 1
  end
  local stored = redis.call("HMGET", load.worker, "models", "engine")
  local models, is_engine = cjson.decode(stored[1]), stored[2] and stored[2] ~= ""
  local clock = decay_clock_of(load.pools)
  if drain then
    local work, vanished = leave_pools(name, load.index_seq, load.pools, models)
    spend(work)
    record_models({}, vanished)
    leave_overflow(name)
  else
    local digest = load.pools[1] and load.pools[1]:match("^\30(.*)$")
    if digest then -- other sets may have come meanwhile, and a model has a limited number
      load.pools = assign_pools(models, digest)
      clock = decay_clock_of(load.pools)
    end
    record_models(join_pools(load, models), {})
    if decays and clock and not is_engine then
      learn_decay(clock, time, 0, 0, 0) -- starts the clock
      load.decayed_at = decay_clock(clock, time)
    end
  end
  write_load(load, "pools", table.concat(load.pools, "\n"))
  update_cost_index(load, decays)
  update_decay_index(load, decays and time)
  update_lottery(load)
  record_event(drain and "worker_draining" or "worker_resumed", "worker", name, "by", call.by, "reason", call.reason)
  return 1
end

return run_once(request_id, reply_ttl, function()
  return handle_each(calls, set_draining)
end)
