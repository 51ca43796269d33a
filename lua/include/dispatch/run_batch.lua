--[[
  Dispatch a batch of requests one after the other, and keep the reply. If the call was made before, return the reply
  that was kept, and dispatch nothing.

  Input:
    call       a table:
                 reply            the key of the reply
                 kept             the reply that was kept, or false
                 reply_ttl        the milliseconds for which the reply is kept
                 requests         as include/arguments/read_requests.lua returns them
                 books_untracked  true if requests without a lease are booked too
                 needs_seq        true if the requests get sequence numbers
                 outcomes         an array that `choose` may add texts to; nil if it adds none
    choose     a function that gets a request and its sequence number, books the request, and returns the names of the
               worker and of the lease, each '' for none; nil if the budget of the call does not suffice

  Output: an array with these two entries for each request, in order, and then the outcomes. It is flat, because a table
  for each request would cost more than anything else here.
]]
--- @include "key"
--- @include "spend"
local function run_batch(call, choose)
  if call.kept then
    local kept = cjson.decode(call.kept)
    for _, outcome in ipairs(kept.outcomes or {}) do
      kept.choices[#kept.choices + 1] = outcome
    end
    return kept.choices
  end
  local requests = call.requests
  local seq = call.needs_seq and redis.call("INCRBY", key("sequence"), #requests) - #requests or 0
  local choices = {}
  for i = 1, #requests do
    local worker, lease
    if i == 1 or not spend(1) then
      worker, lease = choose(requests[i], seq + i)
    end
    choices[2 * i - 1], choices[2 * i] = worker or false, lease or false -- false is nil in the answer of Redis
  end
  local outcomes = call.outcomes
  local reply = cjson.encode({ choices = choices, books_untracked = call.books_untracked, outcomes = outcomes })
  redis.call("SET", call.reply, reply, "PX", call.reply_ttl)
  if outcomes then
    for _, outcome in ipairs(outcomes) do
      choices[#choices + 1] = outcome
    end
  end
  return choices
end
