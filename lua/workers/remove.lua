--[[
  Remove workers, alive or not, and all that is stored of them.

  Keys:
    workers                 ZSET    w
    worker:<name>           HASH    rw
    checkpoints:<name>      STRING  w
    heartbeat:<name>        STRING  rw
    removed:<name>          STRING  w
    draining:<name>         STRING  w
    models                  SET     w
    pools:<model>           STRING  rw
    overflow                SET     rw
    cost_index:<pool>       ZSET    rw
    decay_index:<pool>      ZSET    rw
    cost_heads              HASH    w
    decay_heads             HASH    w
    decay:<pool>            STRING  w
    lottery:<pool>          ZSET    w
    lottery_failing:<pool>  ZSET    w
    odds:<pool>             STRING  w
    token_workers           HASH    rw
    sequence                STRING  rw
    reply:<request_id>      STRING  rw
    events                  STREAM  w

  Input:
    KEYS[1]   {<namespace>}
    ARGV[1]   request_id: id of the call; a repeated call with the same id gets the first reply and removes nothing
    ARGV[2]   reply_ttl: the milliseconds for which the reply is kept
    ARGV[3]   removed_ttl: the milliseconds for which no replica restores a removed worker from its snapshot
    ARGV[4…]  for each worker: name, registration, by, reason
                name: the worker's name
                registration: the number of a registration, to remove the worker only if it is unchanged; '' to remove
                  it in any case, and to let it serve again if it was draining and registers again
                by: who removes it, for the event; '' for the controller itself
                reason: why, for the event; '' for no reason

  Output:
    an array with one entry for each worker, in order; if there are fewer, call again for the rest
      1  a live worker was removed
      0  there was no such live worker, or it has registered again
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "argument_groups"
--- @include "handle_each"
--- @include "is_alive"
--- @include "key"
--- @include "purge_worker" when called
--- @include "run_once"
--- @include "spend"
--- @include "whole_number"
local request_id, reply_ttl, removed_ttl = ARGV[1], whole_number(ARGV[2], 1), whole_number(ARGV[3], 1)
local calls = argument_groups(4, { "name", "registration", "by", "reason" })
if not reply_ttl or not removed_ttl or not calls or not calls[1] then
  return redis.error_reply("INVALID arguments")
end

local function remove(call)
  local name = call.name
  local registration = redis.call("HGET", key("worker", name), "registration")
  if call.registration ~= "" and registration ~= call.registration then
    return 0
  end
  local was_alive = is_alive(name)
  -- First: after a deletion, Redis accepts all writes, even if its memory is full.
  if was_alive then
    spend(purge_worker(name, "worker_removed", "worker", name, "by", call.by, "reason", call.reason))
  else
    spend(purge_worker(name))
  end
  if call.registration == "" then
    redis.call("DEL", key("draining", name))
  end
  if was_alive then
    redis.call("SET", key("removed", name), "1", "PX", removed_ttl)
    redis.call("INCR", key("sequence")) -- so that replicas notice if Redis loses this change
  end
  return was_alive and 1 or 0
end

-- A repeated call removes nothing: the worker may have registered again since.
return run_once(request_id, reply_ttl, function()
  return handle_each(calls, remove)
end)
