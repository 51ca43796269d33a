--[[
  Purge expired workers and end expired leases. Only memory and the length of listings depend on it, because every
  script checks heartbeats itself.

  All replicas call it. The first call in an interval does the work, the others return at once.

  Keys:
    workers                 ZSET    rw
    worker:<name>           HASH    rw
    checkpoints:<name>      STRING  rw
    heartbeat:<name>        STRING  rw
    draining:<name>         STRING  w
    models                  SET     w
    pools:<model>           STRING  rw
    overflow                SET     rw
    cost_index:<pool>       ZSET    rw
    decay_index:<pool>      ZSET    rw
    cost_heads              HASH    w
    decay_heads             HASH    w
    decay:<pool>            STRING  rw
    lottery:<pool>          ZSET    w
    lottery_failing:<pool>  ZSET    w
    odds:<pool>             STRING  w
    leases                  ZSET    rw
    token_leases            HASH    rw
    token_workers           HASH    rw
    events                  STREAM  w
    sweep                   STRING  rw

  Input:
    KEYS[1]  {<namespace>}
    ARGV[1]  interval: the interval in milliseconds
    ARGV[2]  decays: '1' if bookings decay, otherwise '0'

  Output:
    an array:
      [1]  1 if there is more to do: call again; 0 if all is done, or another replica did it
      [2]  an array of the names of the purged workers
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "expire_leases"
--- @include "is_alive"
--- @include "key"
--- @include "now"
--- @include "purge_worker" when called
--- @include "spend"
--- @include "whole_number"
local LIMIT = 200 -- workers, and leases, in one call

local interval, decays = whole_number(ARGV[1], 1), ARGV[2] == "1"
if not interval then
  return redis.error_reply("INVALID arguments")
end

local ttl = redis.call("PTTL", key("sweep"))
if ttl >= 0 and ttl <= interval then -- it is longer only if the clock of Redis was set back
  return { 0, {} }
end

local time = now()
local purged, alive = {}, {}
local expired = redis.call("ZRANGEBYSCORE", key("workers"), "-inf", time, "LIMIT", 0, LIMIT)
for _, name in ipairs(expired) do
  if spend(1) then
    return { 1, purged }
  elseif is_alive(name) then -- the clock was set ahead and back
    alive[#alive + 1] = name
  else
    spend(purge_worker(name))
    purged[#purged + 1] = name
  end
end
local has_more = expire_leases(time, decays, LIMIT) or #expired == LIMIT
-- Last: if Redis's memory is full, it rejects a write before the first deletion. Then the next sweep does it.
for _, name in ipairs(alive) do -- look again when the heartbeat expires
  redis.pcall("ZADD", key("workers"), time + redis.call("PTTL", key("heartbeat", name)), name)
end
if has_more then
  return { 1, purged }
end
redis.pcall("SET", key("sweep"), "1", "PX", interval)
return { 0, purged }
