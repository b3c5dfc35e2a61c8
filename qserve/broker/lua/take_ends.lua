-- take_ends: return the counts of requests that have ended without a commit, and begin them again.
--
-- If it does not run, they are returned the next time. Once it has run, its caller alone has them.
--
-- Returns state and application in one, and the count, alternately.

local found = kind_of(ends) == 'hash' and redis.call('HGETALL', ends) or empty
write('DEL', ends)
carry_out()
return found
