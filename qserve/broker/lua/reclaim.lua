-- reclaim: hand what a dead consumer held to the others, then remove the consumer.
--
-- If it does not run, the calls are pending with the dead consumer, and the next sweep finds them.
--
-- `to` is the same stream, or the common one for a replica's own. A call is delivered again as a new entry that carries
-- the number of its deaths; replicas run such calls alone, so only the call that kills is counted on. At its
-- `death_limit` it becomes a dead letter.
--
-- Returns the number of calls handed over; RECLAIM_COUNT when there may be more.

local pending = redis.pcall('XPENDING', stream, GROUP, '-', '+', RECLAIM_COUNT, consumer)
if pending.err then return 0 end
for _, delivery in ipairs(pending) do
  local entry_id = delivery[1]
  local _, fields = take_entry(stream, entry_id)
  if fields then
    local call = by_name(fields)
    local deaths = (tonumber(call[CallField.DEATHS]) or 0) + 1
    local history = history_of(fields, consumer, 'its replica died (' .. deaths .. ')')
    if deaths < death_limit then
      requeue(to, with(fields, { [CallField.DEATHS] = deaths, [CallField.HISTORY] = history }), request_prefix)
    else
      local known = request_id_of(call[CallField.HEADER])
      local id = known or made_up_id(stream, entry_id)
      make_dead_letter(request_prefix .. id, id, to, fields, DEATHS, failure, history, known ~= nil)
    end
  end
end
if #pending < RECLAIM_COUNT then redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, consumer) end
return #pending
