--[[
  Numbers that several files use. The loader replaces each name by its number, so a name costs no time when a script
  runs.
]]
-- The largest number up to which a Lua number can be every whole number: 2^53.
local MAX_WHOLE_NUMBER = 9007199254740992

-- Costs (include/load/cost_of.lua): what is added for a worker without a free slot and for a failing one, and the
-- highest cost without that.
local FULL = 1e9
local FAILING = 1e12
local MAX_SERVING = 999999999
local MAX_FULL = 999999999999

-- Scores of decay indexes (include/indexes/update_decay_index.lua): the highest one of a worker without untracked load,
-- and what is added for a failing worker, 2^54.
local MAX_WITHOUT_LOAD = -1e9
local FAILING_OFFSET = 18014398509481984

-- Checkpoints of a load (include/load/add_checkpoint.lua): the milliseconds between two, the characters of one, and the
-- age and the characters of the last eight.
local CHECKPOINT_MS = 50
local CHECKPOINT_SIZE = 36
local RECENT_MS = 400
local RECENT_SIZE = 288

-- The milliseconds after which the key of all leases expires: 2 days, longer than any lease.
local LEASES_TTL = 172800000
