--[[
  Lets a worker's models know of its pools, before it is put into their indexes.

  Input:
    load    as include/load_of.lua gives it
    models  the names of its models
]]
--- @include "clock_of"
--- @include "key"
--- @include "spend"
local function join_pools(load, models)
  for _, pool in ipairs(load.pools) do
    if redis.call("EXISTS", key("model", pool)) == 0 then
      local of_set = pool:sub(1, 1) == "\30"
      for _, model in ipairs(of_set and models or { (pool:gsub("^\31", "")) }) do
        local written = redis.call("GET", key("pools", model))
        if not written and pool ~= model then
          written = redis.call("EXISTS", key("model", model)) == 1 and model .. "\n" or ""
        end
        if written and not ("\n" .. written):find("\n" .. pool .. "\n", 1, true) then
          redis.call("SET", key("pools", model), written .. pool .. "\n")
        end
        redis.call("SADD", key("models"), model)
        spend(2)
      end
    end
  end
  if clock_of(load.pools) == "\31" then
    redis.call("SADD", key("rest"), load.name)
  end
end
