--[[
  Append an event to the stream of events. The stream keeps about the last 10,000.

  Call it after the first write of a script, because a full Redis rejects the first write of a script and accepts the
  later ones. An event that cannot be stored is lost: no operation fails for it.

  Input:
    kind  a kind of event, as in controller/domain/events.py
    ...   names and values of the event's fields, at least one of each. Fields without a value are left out
]]
--- @include "key"
local function record_event(kind, ...)
  local fields, given = {}, { ... }
  for i = 1, #given, 2 do
    if given[i + 1] and given[i + 1] ~= "" then
      fields[#fields + 1], fields[#fields + 2] = given[i], given[i + 1]
    end
  end
  redis.pcall("XADD", key("events"), "MAXLEN", "~", 10000, "*", "kind", kind, unpack(fields))
end
