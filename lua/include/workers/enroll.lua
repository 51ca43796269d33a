--[[
  Store a registration of a worker, and index the worker by it. The worker is alive from now on. A worker that was
  draining still drains.

  Input:
    registration  as include/workers/read_registrations.lua returns it
    time          the time
    decays        true if bookings decay
    event         the kind of event to record if the worker is new
    refusal_of    a function that gets the registration, and true if the worker is alive, and returns nil if the
                  registration may take place, otherwise a negative number
    make_load     a function that gets the registration, the worker's load until now or nil, the number of the
                  registration and the time, and returns the worker's load, which may lack what the registration says,
                  and other fields of the worker's hash as arguments of HSET, or nil

  Output: 1 if the worker is new, 0 if it was registered, the negative number if the registration was refused and
  changed nothing.
]]
--- @include "assign_pools"
--- @include "count_for_token" when called
--- @include "decay_clock"
--- @include "decay_clock_of"
--- @include "decide_capacity"
--- @include "encode_models" when called
--- @include "is_alive"
--- @include "join_pools"
--- @include "key"
--- @include "learn_decay"
--- @include "leave_overflow"
--- @include "leave_pools" when called
--- @include "purge_worker" when called
--- @include "read_load"
--- @include "record_event" when called
--- @include "record_models" when called
--- @include "refresh_heartbeat"
--- @include "spend"
--- @include "update_cost_index"
--- @include "update_decay_index"
--- @include "update_lottery"
--- @include "write_load"
local function enroll(registration, time, decays, event, refusal_of, make_load)
  local reply = key("reply", registration.request_id)
  local earlier = redis.call("GET", reply)
  if earlier then
    return tonumber(earlier)
  end
  local name, worker = registration.name, key("worker", registration.name)
  local was_alive = is_alive(name)
  local refusal = refusal_of(registration, was_alive)
  if refusal then
    return refusal
  end

  -- If Redis's memory is full, it rejects this write, and so the script stops before it has changed anything.
  local number = redis.call("INCR", key("sequence"))
  if not was_alive then
    spend(purge_worker(name))
    redis.call("DEL", key("removed", name))
  end
  local before = read_load(name, decays and time)
  local pools_before = before and before.pools or {}
  local was_draining = redis.call("GET", key("draining", name)) or (before and before.draining)
  redis.call("DEL", key("draining", name))
  local draining = was_draining or registration.draining

  local pools = assign_pools(registration.models, registration.models_digest)
  local clock = decay_clock_of(pools)
  if decays and clock and not draining and registration.engine == "" then
    learn_decay(clock, time, 0, 0, 0) -- starts the clock
  end
  local load, other_fields = make_load(registration, before, number, time)
  if not load.pools or decay_clock_of(load.pools) ~= clock then
    load.decayed_at = decay_clock(clock, time)
  end
  load.pools = pools
  load.speed = registration.speed
  local capacity, capacity_source = decide_capacity(name, registration.models, registration.capacity,
    registration.default_capacity)
  load.capacity = capacity
  load.untracked_own_rate = load.untracked_own_rate or load.untracked
  load.draining = draining

  local is_joined, left = {}, {}
  for _, pool in ipairs(pools) do
    is_joined[pool] = true
  end
  for _, pool in ipairs(pools_before) do
    left[#left + 1] = not is_joined[pool] and pool or nil
  end
  local stored = before and redis.call("HMGET", worker, "models", "registered_by", "engine") or {}
  local models_before, token_before, engine_before = stored[1], stored[2] or "", stored[3] or ""
  if token_before ~= registration.registered_by then
    if token_before ~= "" then
      count_for_token(key("token_workers"), token_before, -1)
    end
    if registration.registered_by ~= "" then
      count_for_token(key("token_workers"), registration.registered_by, 1)
    end
  end
  write_load(load,
    "pools", table.concat(pools, "\n"),
    "speed", registration.speed,
    "capacity", capacity or "",
    "models", registration.models_json,
    "multimodal", registration.multimodal,
    "check_heart_beat", registration.heartbeat_ttl and "1" or "0",
    "registration", number,
    "heartbeat_at", time,
    "capacity_source", capacity_source,
    "registered_by", registration.registered_by,
    "engine", registration.engine,
    "reported_capacity", registration.capacity or "",
    unpack(other_fields or {}))
  refresh_heartbeat(name, time, registration.heartbeat_ttl)
  local appeared, vanished = {}, {}
  if left[1] then
    local work
    work, vanished = leave_pools(name, load.index_seq, left, cjson.decode(models_before))
    spend(work)
  end
  if not clock or clock:byte() ~= 31 then
    leave_overflow(name)
  end
  if not draining then
    appeared = join_pools(load, registration.models)
  end
  update_cost_index(load, decays)
  update_decay_index(load, decays and time)
  update_lottery(load)
  if appeared[1] or vanished[1] then
    record_models(appeared, vanished)
  end
  local is_changed = models_before ~= registration.models_json or token_before ~= registration.registered_by
    or engine_before ~= registration.engine
  if before and before.failing and not load.failing then
    record_event("worker_recovered", "worker", name)
  end
  if not was_alive or is_changed then
    record_event(was_alive and "worker_changed" or event, "worker", name, "by", registration.registered_by,
      "models", encode_models(registration.models), "count", #registration.models)
  end
  local result = was_alive and 0 or 1
  redis.call("SET", reply, result, "PX", registration.reply_ttl)
  return result
end
