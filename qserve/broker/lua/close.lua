-- close: end an open request without a result: it was cancelled, or has expired.
--
-- If it does not run, the request goes on until it ends by itself. Once it has run, no call of the request is queued or
-- pending, so none runs again, and each replica that runs one has a message in its mailbox.
--
-- Returns 1 when this call ended it, 0 when it had ended before.

if not is_open(request) then return 0 end
remove_calls(request, request_id, state, payload)
finish(request, request_id, state, payload)
carry_out()
return 1
