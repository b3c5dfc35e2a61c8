-- dead_letter: end a delivery that is not worth another try, or cannot be read, as a dead letter; its request fails.
--
-- If it does not run, the delivery is pending and its call will run again.
--
-- Returns OK, or STALE when the delivery was committed or handed over before.

local is_held, fields = take_entry(stream, entry_id)
if not is_held then return Reply.STALE end
local reply = Reply.OK
if fields then
  local id = request_id
  if not is_known and not (request_id_of(id) and is_open(request)) then
    id = made_up_id(stream, entry_id)
    request = request_of(stream, id)
  end
  local keeper = is_known and keeper_of(request)
  if keeper and not is_named(keeper, by_name(fields)[CallField.STEP] or '', stream, entry_id) then
    reply = Reply.STALE
  else
    local history = history_of(fields, replica, what)
    local made = make_dead_letter(request, id, stream, fields, why, failure, history, is_known)
    drop_oldest(dead_letters_of(request), made)
  end
end
carry_out()
return reply
