-- dead_letter: end a delivery that is not worth another try, or cannot be read, as a dead letter; its request fails.
--
-- If it does not run, the delivery is pending and its call will run again.
--
-- Returns OK, or STALE when the delivery was committed or handed over before.

local is_held, fields = take_entry(stream, entry_id)
if not is_held then return Reply.STALE end
if not fields then return Reply.OK end
local id = request_id
if not is_known and not (request_id_of(id) and is_open(request)) then
  id = made_up_id(stream, entry_id)
  request = request_of(stream, id)
end
make_dead_letter(request, id, stream, fields, why, failure, history_of(fields, replica, what), is_known)
return Reply.OK
