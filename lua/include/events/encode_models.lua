--[[
  Return the names of models for an event, as a JSON array. It has the first 16 of them, so that no event is large.

  Input:
    models  an array of names
]]
local function encode_models(models)
  return cjson.encode({ unpack(models, 1, math.min(#models, 16)) })
end
