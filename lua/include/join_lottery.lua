--[[
  Draws a worker's ticket in the lottery of a model, from now on: from the ticket that won last.

  The member '' is the lottery's clock: its score is that ticket. The clock only runs forward; where it has run so far
  that a ticket added to it would lose its digits, all tickets are set back first.

  Input:
    model  the model's name
    name   the worker's name
    speed  its speed
    draw   a draw from the exponential distribution of mean 1
]]
--- @include "key"
local function join_lottery(model, name, speed, draw)
  local lottery = key("lottery", model)
  local clock = tonumber(redis.call("ZSCORE", lottery, "") or 0)
  if clock * speed > 1073741824 then -- 2^30: of the 53 digits of a number, 23 are left for a ticket
    local tickets = redis.call("ZRANGE", lottery, 0, -1, "WITHSCORES")
    for i = 1, #tickets, 2 do
      redis.call("ZADD", lottery, tonumber(tickets[i + 1]) - clock, tickets[i])
    end
    clock = 0
  end
  redis.call("ZADD", lottery, clock, "")
  redis.call("ZADD", lottery, clock + draw / speed, name)
end
