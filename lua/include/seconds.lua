--[[
  Return a clock by which a script measures its own run: of the processor time, or of the time of day in versions of
  Redis whose scripts have no `os`.

  Output: seconds, as a fraction.
]]
local function seconds()
  local os = rawget(_G, "os")
  if os then
    return os.clock()
  end
  local whole, microseconds = unpack(redis.call("TIME"))
  return whole + microseconds / 1000000
end
