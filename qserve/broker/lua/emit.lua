-- emit: deliver one item of a streamed result, in order and once, however often its call is run.
--
-- If it does not run, the item is missing, and the call that yields it waits or runs again.
--
-- Returns how many items the reader has not yet taken; -1 when the request has ended: stop.

local state, mailbox, sent, taken = unpack(
  redis.call('HMGET', request, Field.STATE, Field.MAILBOX, Field.SENT, Field.TAKEN)
)
if state ~= State.OPEN then return -1 end
sent, taken = tonumber(sent or 0), tonumber(taken or 0)
if number == sent then
  redis.call('HSET', request, Field.SENT, sent + 1)
  if mailbox ~= '' then deliver(mailbox, request_id, ITEM, payload) end
  sent = sent + 1
end
return sent - taken
