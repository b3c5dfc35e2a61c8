-- note: write down an event of a call that runs, such as what its code says of its progress.
--
-- If it does not run, those who follow the request do not hear of it.
--
-- Returns OK; CLOSED when the request has ended or is not known; or STALE when the call ended, or another entry stands
-- for its step.

if not is_open(request) then return Reply.CLOSED end
if not is_named(request, step, stream, entry_id) then return Reply.STALE end
check(events_of(request), 'stream')
log_event(request, event)
if is_progress then hset(request, Field.PROGRESS, event) end
carry_out()
return Reply.OK
