--[[
  What shortest_queue compares: the worker with the least is chosen. With a free slot, or where nobody knows of slots,
  it is requests for each unit of speed; without, how long the next request would wait, behind all that have one;
  whoever fails comes behind them all.
  The rule in Python: controller/domain/load.py, Load.cost().

  Input:
    load      as include/load_of.lua gives it
    unleased  how many requests there are without a lease: load.unleased, or 0 to leave them out
    expected  the same for the comparison with its slots: load.expected, or 0; of no matter where no capacity is told
]]
local function cost_of(load, unleased, expected)
  local leased = load.leased - load.ended
  local cost = (leased + unleased) / load.speed
  if load.capacity then
    local missing = leased + expected + 1 - load.capacity
    if missing > 0 then
      cost = 1e9 + missing / (load.capacity * load.speed)
    end
  end
  return load.failing and cost + 1e12 or cost
end
