-- backlog: return how much waits in each of some queues.
--
-- It writes nothing. If it does not run, nothing has changed.
--
-- Calls for a model wait in the stream of a replica that holds it, and are counted with those of the queue.
--
-- Returns for each queue { calls that no replica has fetched, calls that replicas hold, milliseconds for which the
-- oldest of the first has waited }.

-- add what is in one stream to the numbers of its queue
local function add_load(load, stream)
  local waiting = count_waiting(stream)
  load[1] = load[1] + waiting
  load[2] = load[2] + redis.call('XLEN', stream) - waiting
  load[3] = math.max(load[3], oldest_waiting_ms(stream))
end

local found = {}
for k, queue in ipairs(queues) do
  found[k] = { 0, 0, 0 }
  for _, stream in ipairs(streams_of(queue)) do add_load(found[k], stream) end
end
return found
