-- emit: deliver items of a streamed result, in order and each once, however often their call is run.
--
-- If it does not run, the items are missing, and the call that yields them waits or runs again.
--
-- Returns how many items the reader has not yet taken; -1 when the request has ended: stop. A reader that counts bytes
-- first needs room: until it has taken an item, HELD_BACK more are reported, so that only a few are sent.

local state, mailbox = unpack(hmget(request, { Field.STATE, Field.MAILBOX }))
local ahead, is_read = -1, false
if state == State.OPEN then
  local sent, taken = count_in(request, Field.SENT), count_in(request, Field.TAKEN)
  local before = sent - number -- how many of these were sent by an earlier run of the call
  if before >= 0 and before < #items then
    sent = number + #items
    hset(request, Field.SENT, sent)
    if mailbox and mailbox ~= '' then
      is_read = true
      for k = before + 1, #items do deliver(mailbox, request_id, ITEM, items[k]) end
    end
  end
  ahead = math.max(0, sent - taken)
  if taken == 0 and mailbox and string.sub(mailbox, -1) == COUNTS then ahead = ahead + HELD_BACK end
end
if value ~= '' then payloads.count(request, value, is_read and 1 or 0, is_read and redis.call('PTTL', request)) end
if value ~= '' and is_read then payloads.note_item(request, value) end
carry_out()
return ahead
