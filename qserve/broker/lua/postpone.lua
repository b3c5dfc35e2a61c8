-- postpone: end one try of a call, which comes back after a while.
--
-- If it does not run, the delivery is pending and its call will run again, with a death counted instead of a try.
--
-- Returns OK, or STALE when the delivery was committed or handed over before.

local is_held, fields = take_entry(stream, entry_id)
if not is_held then return Reply.STALE end
if not fields then return Reply.OK end
if not is_open(request) then
  keep_if_dead(request, stream, fields)
  return Reply.OK
end
local history = history_of(fields, replica, what)
local member = with(fields, { [CallField.TRIES] = tries, [CallField.DEATHS] = false, [CallField.HISTORY] = history })
table.insert(member, 1, request)
redis.call('ZADD', delayed, now_ms() + wait_ms, cmsgpack.pack(member))
-- as long as the longest-lived of what waits there
redis.call('PEXPIRE', delayed, math.max(redis.call('PTTL', delayed), ttl_ms))
return Reply.OK
