-- emit: deliver one item of a streamed result, in order and once, however often its call is run.
--
-- If it does not run, the item is missing, and the call that yields it waits or runs again.
--
-- Returns how many items the reader has not yet taken; -1 when the request has ended: stop. A reader that counts bytes
-- first needs room: until it has taken an item, HELD_BACK more are reported, so that only a few are sent.

local state, mailbox = unpack(hmget(request, { Field.STATE, Field.MAILBOX }))
if state ~= State.OPEN then return -1 end
local sent, taken = count_in(request, Field.SENT), count_in(request, Field.TAKEN)
if number == sent then
  sent = sent + 1
  hset(request, Field.SENT, sent)
  if mailbox and mailbox ~= '' then
    deliver(mailbox, request_id, ITEM, payload)
    if value ~= '' then payloads.count(request, value, 1, redis.call('PTTL', request)) end
  end
end
local ahead = math.max(0, sent - taken)
if taken == 0 and mailbox and string.sub(mailbox, -1) == COUNTS then ahead = ahead + HELD_BACK end
carry_out()
return ahead
