--[[
  Record an event for models that have got their first worker, and one for models that have lost their last worker.

  Input:
    appeared  an array of names
    vanished  an array of names. A model that is also in `appeared` has not changed, and gets no event
]]
--- @include "encode_models"
--- @include "record_event"
local function record_models(appeared, vanished)
  local in_both = {}
  for _, model in ipairs(vanished) do
    in_both[model] = false
  end
  for _, model in ipairs(appeared) do
    in_both[model] = in_both[model] == false
  end
  for _, each in ipairs({ { "models_vanished", vanished }, { "models_appeared", appeared } }) do
    local changed = {}
    for _, model in ipairs(each[2]) do
      changed[#changed + 1] = not in_both[model] and model or nil
    end
    if changed[1] then
      record_event(each[1], "models", encode_models(changed), "count", #changed)
    end
  end
end
