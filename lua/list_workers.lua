--[[
  Every live worker with all that is known of it, at one instant. Walks over all workers.

  Input:
    KEYS[1]  '{<ns>}' the namespace

  Output:
    an array with one array a worker, in order of name:
      [1]  name
      [2]  models, a JSON array
      [3]  speed
      [4]  queue length
      [5]  '1' if it is multimodal, else '0'
      [6]  '1' if it must send heartbeats, else '0'
      [7]  number of its registration
      [8]  age of its last heartbeat or registration in milliseconds
      [9]  milliseconds until it expires; -1 for a worker that need not send heartbeats
]]
--- @include "key"
--- @include "now"
local time = now()
local names = redis.call("ZRANGE", key("workers"), 0, -1)
table.sort(names)

local workers = {}
for _, name in ipairs(names) do
  local expires_in = redis.call("PTTL", key("heartbeat", name)) -- -2: there is no such key
  local fields = redis.call("HMGET", key("worker", name),
    "models", "speed", "queue_length", "multimodal", "check_heart_beat", "registration", "heartbeat_at")
  if expires_in ~= -2 and fields[1] then
    workers[#workers + 1] = {
      name, fields[1], fields[2], fields[3], fields[4], fields[5], fields[6],
      math.max(0, time - tonumber(fields[7])), expires_in,
    }
  end
end
return workers
