--[[
  Delete everything that is stored of a worker, whether it is registered or not. A worker that was draining still drains
  if it registers again within an hour.

  Input:
    name  the worker's name
    ...   the event to record for it if it was registered, as arguments of include/events/record_event.lua; none if its
          heartbeat has expired

  Output: the amount of work, in units of include/spend.lua.
]]
--- @include "count_for_token" when called
--- @include "key"
--- @include "leave_overflow"
--- @include "leave_pools"
--- @include "read_load"
--- @include "record_event"
--- @include "record_models"
local function purge_worker(name, ...)
  local work = 2
  local load = read_load(name)
  local models_json, token, vanished
  if load then
    models_json, token = unpack(redis.call("HMGET", load.worker, "models", "registered_by"), 1, 2)
    local is_json, models = pcall(cjson.decode, models_json)
    local more
    more, vanished = leave_pools(name, load.index_seq, load.pools, is_json and models or {})
    work = work + more
    leave_overflow(name)
  end
  redis.call("DEL", key("worker", name), key("heartbeat", name), key("checkpoints", name))
  redis.call("ZREM", key("workers"), name)
  -- Last: after a deletion, Redis accepts these writes even if its memory is full.
  if token and token ~= "" then
    count_for_token(key("token_workers"), token, -1)
  end
  if load and load.draining then
    redis.call("SET", key("draining", name), load.draining, "PX", 3600000)
  end
  if load then
    record_models({}, vanished)
  end
  if load and ... then
    record_event(...)
  elseif load then
    record_event("worker_expired", "worker", name)
  end
  return work
end
