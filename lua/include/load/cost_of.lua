--[[
  Return the cost of a worker. The dispatch by shortest_queue chooses the worker with the lowest cost.

  With a free slot, or without a known capacity, the cost is the number of requests per unit of speed. Without a free
  slot it is the expected wait of the next request, above 1e9. A failing worker costs more than 1e12. A cost stops below
  the next band. So each worker with a free slot costs less than a full one, and a full one less than a failing one. The
  rule in Python is controller/domain/cost.py.

  Input:
    load                as include/load/read_load.lua returns it
    untracked           the untracked load: load.untracked, or 0 to leave it out
    untracked_own_rate  the untracked load at the worker's own decay rate, which is compared with its slots:
                        load.untracked_own_rate, or 0; ignored without a known capacity
]]
--- @include "constants"
local function cost_of(load, untracked, untracked_own_rate)
  local leased = load.leased - load.finished
  local cost = math.min((leased + untracked) / load.speed, MAX_SERVING)
  if load.capacity then
    local missing = leased + untracked_own_rate + 1 - load.capacity
    if missing > 0 then
      cost = math.min(FULL + missing / (load.capacity * load.speed), MAX_FULL)
    end
  end
  return load.failing and cost + FAILING or cost
end
