--[[
  List the models of the live multimodal workers, or of the other live workers. Draining workers are left out. Each call
  looks at some workers, so that it cannot block Redis for long.

  Keys:
    workers           ZSET    r
    worker:<name>     HASH    r
    heartbeat:<name>  STRING  r

  Input:
    KEYS[1]  {<namespace>}
    ARGV[1]  cursor: '0' to begin, then the cursor that the previous call returned
    ARGV[2]  count: about how many workers to look at
    ARGV[3]  multimodal: '1' for the multimodal workers, '0' for the others

  Output:
    an array:
      [1]  the cursor for the next call; '0' if all workers were looked at
      [2]  an array of distinct lists of models, each a JSON array
    error 'INVALID …' if an argument is invalid
]]
--- @include "is_alive"
--- @include "key"
--- @include "whole_number"
local cursor, count, multimodal = ARGV[1], whole_number(ARGV[2], 1), ARGV[3]
if not cursor:match("^%d+$") or not count or (multimodal ~= "0" and multimodal ~= "1") then
  return redis.error_reply("INVALID arguments")
end

local step = redis.call("ZSCAN", key("workers"), cursor, "COUNT", count)
local members = step[2] -- each name is followed by its score
local lists, is_known = {}, {}
for i = 1, #members, 2 do
  local name = members[i]
  local fields = redis.call("HMGET", key("worker", name), "models", "multimodal", "draining")
  local models, is_wanted, is_draining = fields[1], fields[2] == multimodal, fields[3] ~= "0"
  if is_wanted and not is_draining and not is_known[models] and is_alive(name) then
    is_known[models] = true
    lists[#lists + 1] = models
  end
end
return { tostring(step[1]), lists }
