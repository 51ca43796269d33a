--[[
  Delete an empty pool from the pools of a model. A model without pools is deleted.

  Input:
    pool   the name of the pool
    model  the model's name
]]
--- @include "key"
local function delete_pool(pool, model)
  local written = redis.call("GET", key("pools", model)) or model .. "\n"
  local first, last = ("\n" .. written):find("\n" .. pool .. "\n", 1, true)
  if not first then
    return -- the worker was draining, and in no index
  end
  local left = written:sub(1, first - 1) .. written:sub(last)
  if left == "" then
    redis.call("DEL", key("pools", model))
    redis.call("SREM", key("models"), model)
  else
    redis.call("SET", key("pools", model), left)
  end
end
