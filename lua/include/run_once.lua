--[[
  Run a call once per request id, and keep its reply for repeated calls. A caller repeats a call if its reply was lost.

  Input:
    request_id  the id of the call
    reply_ttl   the milliseconds for which the reply is kept
    run         a function that makes the changes and returns the reply, an array

  Output: the reply of `run`, or the kept reply.
]]
--- @include "key"
local function run_once(request_id, reply_ttl, run)
  local reply = key("reply", request_id)
  local kept = redis.call("GET", reply)
  if kept then
    return cjson.decode(kept)
  end
  local results = run()
  redis.call("SET", reply, cjson.encode(results), "PX", reply_ttl)
  return results
end
