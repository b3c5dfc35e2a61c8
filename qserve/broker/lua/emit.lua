-- emit: deliver items of a streamed result, in order and each once, however often their call is run.
--
-- If it does not run, the items are missing, and the call that yields them waits or runs again.
--
-- Returns how many items the reader has not yet taken; -1 when the request has ended: stop. A reader that counts bytes
-- first needs room: until it has taken an item, HELD_BACK more are reported, so that only a few are sent.

local state, mailbox = unpack(hmget(request, { Field.STATE, Field.MAILBOX }))
if state ~= State.OPEN then return -1 end
local sent, taken = count_in(request, Field.SENT), count_in(request, Field.TAKEN)
local before = sent - number -- how many of these were sent by an earlier run of the call
if before >= 0 and before < #items then
  sent = number + #items
  hset(request, Field.SENT, sent)
  if mailbox and mailbox ~= '' then
    for k = before + 1, #items do deliver(mailbox, request_id, ITEM, items[k]) end
    if value ~= '' then payloads.count(request, value, 1, redis.call('PTTL', request)) end
  end
end
local ahead = math.max(0, sent - taken)
if taken == 0 and mailbox and string.sub(mailbox, -1) == COUNTS then ahead = ahead + HELD_BACK end
carry_out()
return ahead
