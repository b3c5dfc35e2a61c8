-- heard: note how many parts of what its client has sent the application of a WebSocket has taken, in all.
--
-- If it does not run, the client waits for its application longer than it has to.
--
-- Returns 1; 0 when the session has ended.

if not is_open(request) then return 0 end
hset(request, Field.HEARD, math.max(count, count_in(request, Field.HEARD)))
carry_out()
return 1
