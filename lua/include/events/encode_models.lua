--[[
  Return the names of models for an event, as a JSON array. It has the first ones, up to 1,000 bytes of names and the
  name that exceeds them, so that no event is large.

  Input:
    models  an array of names
]]
local function encode_models(models)
  local length, first = 0, {}
  for i, model in ipairs(models) do
    if length > 1000 then
      break
    end
    length = length + #model
    first[i] = model:gsub("^\29", "") -- an engine's (controller/domain/engine.py)
  end
  return first[1] and cjson.encode(first) or "[]" -- cjson would write an empty table as {}
end
