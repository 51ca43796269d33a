--[[
  Append events that replicas have noticed to the stream of events.

  Keys:
    reply:<request_id>  STRING  rw
    events              STREAM  w

  Input:
    KEYS[1]   {<namespace>}
    ARGV[1]   request_id: id of the call; a repeated call with the same id gets the first reply and changes nothing
    ARGV[2]   reply_ttl: the milliseconds for which the reply is kept
    ARGV[3…]  for each event: event
                event: a JSON array of kind, name of the first field, its value, and so on, all of them text

  Output:
    an array with a 1 for each event, in order; if there are fewer, call again for the rest
    error 'INVALID …' if an argument is invalid; nothing was done
]]
--- @include "argument_groups"
--- @include "handle_each"
--- @include "record_event"
--- @include "run_once"
--- @include "whole_number"
local request_id, reply_ttl = ARGV[1], whole_number(ARGV[2], 1)
local events = argument_groups(3, { "event" })
if not reply_ttl or not events or not events[1] then
  return redis.error_reply("INVALID arguments")
end
for _, each in ipairs(events) do
  local is_json, fields = pcall(cjson.decode, each.event)
  if not is_json or type(fields) ~= "table" or #fields < 3 or #fields % 2 == 0 then
    return redis.error_reply("INVALID event")
  end
  for _, field in ipairs(fields) do
    if type(field) ~= "string" then
      return redis.error_reply("INVALID event")
    end
  end
  each.fields = fields
end

return run_once(request_id, reply_ttl, function()
  return handle_each(events, function(each)
    record_event(unpack(each.fields))
    return 1
  end)
end)
