--[[
  What shortest_queue compares: the worker with the least cost is chosen. If it has a free slot, or tells no capacity,
  that is requests for each unit of speed. If it has none, it is how long the next request would wait, above 1e9. A
  failing worker costs more than 1e12. A cost that would reach the next of these bands stops just below it, so that the
  slowest worker that serves costs less than one that is full, and that less than one that fails.
  The rule in Python: controller/domain/load.py, Load.cost().

  Input:
    load      as include/load_of.lua gives it
    unleased  how many requests there are without a lease: load.unleased, or 0 to leave them out
    expected  the same for the comparison with its slots: load.expected, or 0; of no matter where no capacity is told
]]
local function cost_of(load, unleased, expected)
  local leased = load.leased - load.ended
  local cost = math.min((leased + unleased) / load.speed, 999999999)
  if load.capacity then
    local missing = leased + expected + 1 - load.capacity
    if missing > 0 then
      cost = math.min(1e9 + missing / (load.capacity * load.speed), 999999999999)
    end
  end
  return load.failing and cost + 1e12 or cost
end
