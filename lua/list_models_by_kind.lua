--[[
  The models of live workers that are multimodal, or of those that are not, from some workers at a time, so that no call
  holds up the dispatches for long.

  Input:
    KEYS[1]  '{<ns>}' the namespace
    ARGV[1]  '0' to begin; then the cursor that the call before returned
    ARGV[2]  about how many workers are looked at
    ARGV[3]  '1' for the multimodal workers, '0' for the others

  Output:
    an array:
      [1]  the cursor for the next call; '0' when all workers were looked at
      [2]  an array of the lists of models that were found, each a JSON array, none of them twice
    error 'INVALID …' if an argument cannot be
]]
--- @include "alive"
--- @include "key"
--- @include "load_of"
--- @include "whole_number"
local cursor, count, multimodal = ARGV[1], whole_number(ARGV[2], 1), ARGV[3]
if not cursor:match("^%d+$") or not count or (multimodal ~= "0" and multimodal ~= "1") then
  return redis.error_reply("INVALID arguments")
end

local step = redis.call("ZSCAN", key("workers"), cursor, "COUNT", count)
local members = step[2] -- each name is followed by its score
local lists, known = {}, {}
for i = 1, #members, 2 do
  local name = members[i]
  local fields = redis.call("HMGET", key("worker", name), "multimodal", "models")
  if fields[1] == multimodal and not known[fields[2]] and alive(name) then
    local load = load_of(name)
    if load and not load.draining then
      known[fields[2]] = true
      lists[#lists + 1] = fields[2]
    end
  end
end
return { tostring(step[1]), lists }
