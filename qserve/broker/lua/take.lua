-- take: note that the reader of a streamed result has taken `count` items more; UNREAD: it takes no more, and all that
-- comes is dropped.
--
-- If it does not run, the producer waits for its reader longer than it has to.
--
-- Returns how many it has taken in all; 0 when the request has ended.

if not is_open(request) then return 0 end
local taken = count_in(request, Field.TAKEN) + count
hset(request, Field.TAKEN, taken)
if count >= UNREAD then hset(request, Field.MAILBOX, '') end
carry_out()
return taken
