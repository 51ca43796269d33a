--[[
  Delete everything that is stored of the worker `name`, whether it is registered or not. A worker that was draining
  still drains if it registers again within an hour.

  Output: the amount of work, in units of include/spend.lua.
]]
--- @include "count_for_token" when called
--- @include "key"
--- @include "leave_overflow"
--- @include "leave_pools"
--- @include "read_load"
local function purge_worker(name)
  local work = 2
  local load = read_load(name)
  local models_json, token
  if load then
    models_json, token = unpack(redis.call("HMGET", load.worker, "models", "registered_by"), 1, 2)
    local is_json, models = pcall(cjson.decode, models_json)
    work = work + leave_pools(name, load.index_seq, load.pools, is_json and models or {})
    leave_overflow(name)
  end
  redis.call("DEL", key("worker", name), key("heartbeat", name), key("checkpoints", name))
  redis.call("ZREM", key("workers"), name)
  -- Last: after a deletion, Redis accepts these writes even if its memory is full.
  if token and token ~= "" then
    count_for_token(key("token_workers"), token, -1)
  end
  if load and load.draining then
    redis.call("SET", key("draining", name), "1", "PX", 3600000)
  end
  return work
end
