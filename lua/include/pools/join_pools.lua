--[[
  Add a worker's pools to those of its models, before the worker is put into their indexes.

  Input:
    load    as include/load/read_load.lua returns it
    models  the names of its models
]]
--- @include "decay_clock_of"
--- @include "key"
--- @include "spend"
local function join_pools(load, models)
  for _, pool in ipairs(load.pools) do
    if redis.call("EXISTS", key("cost_index", pool)) == 0 then
      local is_set = pool:byte() == 30
      for _, model in ipairs(is_set and models or { (pool:gsub("^\31", "")) }) do
        local written = redis.call("GET", key("pools", model))
        if not written and pool ~= model then
          written = redis.call("EXISTS", key("cost_index", model)) == 1 and model .. "\n" or ""
        end
        if written and not ("\n" .. written):find("\n" .. pool .. "\n", 1, true) then
          redis.call("SET", key("pools", model), written .. pool .. "\n")
        end
        redis.call("SADD", key("models"), model)
        spend(2)
      end
    end
  end
  if decay_clock_of(load.pools) == "\31" then
    redis.call("SADD", key("overflow"), load.name)
  end
end
