--[[
  Count a lease or a worker for the token with which it was requested or registered.

  Input:
    counts  the key of the counts by token
    token   the name of the token
    change  1, or -1 if the lease or the worker is gone
]]
local function count_for_token(counts, token, change)
  if redis.call("HINCRBY", counts, token, change) < 1 then
    redis.call("HDEL", counts, token)
  end
end
