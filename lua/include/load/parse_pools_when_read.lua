--[[
  Let a worker's load have the part `pools`, but parse it only if it is read. A worker in overflow pools may have
  hundreds, and most scripts that read its load do not need them.

  Input:
    load  a table without the part `pools`
    text  the names of the pools, with a line break between them
]]
local function parse_pools_when_read(load, text)
  setmetatable(load, {
    __index = function(_, part)
      if part ~= "pools" then
        return nil
      end
      local pools = {}
      for pool in text:gmatch("[^\n]+") do
        pools[#pools + 1] = pool
      end
      load.pools = pools
      return pools
    end,
  })
end
