-- watch: return the state of a request, with its result when it has one; otherwise have `mailbox` notified of its end.
--
-- If it does not run, the mailbox is not notified.
--
-- Returns what `look` returns.

local found = follow(request, mailbox)
carry_out()
return found
