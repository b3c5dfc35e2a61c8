-- postpone: end one try of a call, which comes back after a while.
--
-- If it does not run, the delivery is pending and its call will run again, with a death counted instead of a try.
--
-- Returns OK, or STALE when the delivery was committed or handed over before.

local is_held, fields = take_entry(stream, entry_id)
if not is_held then return Reply.STALE end
local reply = Reply.OK
local keeper = fields and keeper_of(request)
local step = fields and by_name(fields)[CallField.STEP] or ''
if keeper and not is_named(keeper, step, stream, entry_id) then
  reply = Reply.STALE
elseif keeper == request then
  local history = history_of(fields, replica, what)
  local member = with(fields, { [CallField.TRIES] = tries, [CallField.DEATHS] = false, [CallField.HISTORY] = history })
  table.insert(member, 1, request)
  delay(delayed, cmsgpack.pack(member), now_ms() + wait_ms, ttl_ms)
  hset(request, PLACE .. step, POSTPONED)
  if event ~= '' then log_event(request, event) end
elseif keeper then
  keep_call(keeper, stream, step, fields)
end
carry_out()
return reply
