-- reclaim: hand what a dead consumer held to the others, then remove the consumer.
--
-- If it does not run, the calls are pending with the dead consumer, and the next sweep finds them.
--
-- `to` is the same stream, or the common one for a replica's own. A call is delivered again as a new entry that carries
-- the number of its deaths; replicas run such calls alone, so only the call that kills is counted on. At its
-- `death_limit` it becomes a dead letter. The session of a WebSocket ends with its first replica.
--
-- Returns the number of calls handed over; RECLAIM_COUNT when there may be more.

local pending = redis.pcall('XPENDING', stream, GROUP, '-', '+', RECLAIM_COUNT, consumer)
if pending.err then return 0 end
local made, count = 0, #pending
for _, delivery in ipairs(pending) do
  local entry_id = delivery[1]
  local found = redis.call('XRANGE', stream, entry_id, entry_id)[1]
  remove_entry(stream, entry_id)
  if found then
    local fields, call = found[2], by_name(found[2])
    local deaths = (tonumber(call[CallField.DEATHS]) or 0) + 1
    local history = history_of(fields, consumer, 'its replica died (' .. deaths .. ')')
    if call[CallField.STEP] == SESSION then
      end_session(stream, entry_id, call, request_prefix, failure)
    elseif deaths < death_limit then
      local changed = { [CallField.DEATHS] = deaths, [CallField.HISTORY] = history }
      requeue(to, stream, entry_id, fields, request_prefix, changed)
    else
      local known = request_id_of(call[CallField.HEADER])
      local id = known or made_up_id(stream, entry_id)
      local request = request_prefix .. id
      local keeper = known and keeper_of(request)
      if not keeper or is_named(keeper, call[CallField.STEP] or '', stream, entry_id) then
        made = made + make_dead_letter(request, id, to, fields, DEATHS, failure, history, known ~= nil)
      end
    end
  end
end
if made > 0 then drop_oldest(dead_letters_of(stream), made) end
if count < RECLAIM_COUNT then write('XGROUP', 'DELCONSUMER', stream, GROUP, consumer) end
carry_out()
return count
