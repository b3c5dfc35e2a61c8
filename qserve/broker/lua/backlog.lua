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
  if not is_stream(stream) then return end
  local waiting = count_waiting(stream)
  load[1] = load[1] + waiting
  load[2] = load[2] + redis.call('XLEN', stream) - waiting
  load[3] = math.max(load[3], oldest_waiting_ms(stream))
end

local found = {}
for k, queue in ipairs(queues) do
  found[k] = { 0, 0, 0 }
  add_load(found[k], queue)
  local held = kind_of(models_of(queue)) == 'hash' and redis.call('HGETALL', models_of(queue)) or empty
  for at = 1, #held, 2 do
    local is_stream_of = string.sub(held[at], 1, 2) == 's:'
    if is_stream_of and common_of(held[at + 1]) == queue then add_load(found[k], held[at + 1]) end
  end
end
return found
