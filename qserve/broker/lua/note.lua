-- note: keep what an open request says of its progress, in place of what it said before.
--
-- If it does not run, readers see what it said before, until it says more.
--
-- Returns OK, or CLOSED when the request has ended or is not known.

if not is_open(request) then return Reply.CLOSED end
hset(request, Field.PROGRESS, progress)
carry_out()
return Reply.OK
