--[[
  Return the counts of a worker's leases as text: the field `leases` of its hash. include/load/read_load.lua parses it.
  They share a field, because a script that reads or changes one of them needs all.

  Input:
    load  as include/load/read_load.lua returns it

  Output: '<leased> <finished> <leased_since_report> <released_since_report> <least> <peak>'; '' if all are 0.
]]
local function lease_counts(load)
  if load.peak + load.leased_since_report + load.released_since_report == 0 then
    return ""
  end
  return string.format("%d %d %d %d %d %d", load.leased, load.finished, load.leased_since_report,
    load.released_since_report, load.least, load.peak)
end
