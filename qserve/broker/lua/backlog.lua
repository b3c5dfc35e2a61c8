-- backlog: return how much waits in each of some queues.
--
-- It writes nothing. If it does not run, nothing has changed.
--
-- Returns for each queue { calls that no replica has fetched, milliseconds for which the oldest of them has waited }.

local found = {}
for k, queue in ipairs(queues) do
  found[k] = is_stream(queue) and { count_waiting(queue), oldest_waiting_ms(queue) } or { 0, 0 }
end
return found
