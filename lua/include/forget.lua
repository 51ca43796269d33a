--[[
  Removes every trace of a worker, whether it is known or not. That it was draining is remembered for an hour.

  Output: how much work that was, in units of include/spend.lua.
]]
--- @include "key"
--- @include "leave_pools"
--- @include "leave_rest"
--- @include "load_of"
local function forget(name)
  local work = 2
  local load = load_of(name)
  if load then
    local is_json, models = pcall(cjson.decode, redis.call("HGET", load.worker, "models"))
    work = work + leave_pools(name, load.place, load.pools, is_json and models or {})
    leave_rest(name)
    if load.draining then
      redis.pcall("SET", key("draining", name), "1", "PX", 3600000) -- a full store may refuse
    end
  end
  redis.call("DEL", key("worker", name), key("heartbeat", name))
  redis.call("ZREM", key("workers"), name)
  return work
end
