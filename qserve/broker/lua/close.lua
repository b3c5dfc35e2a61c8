-- close: end an open request without a result: it was cancelled, or has expired.
--
-- If it does not run, the request goes on until it ends by itself.
--
-- Returns 1 when this call ended it, 0 when it had ended before.

if not is_open(request) then return 0 end
remove_calls(request)
finish(request, request_id, state, payload)
carry_out()
return 1
