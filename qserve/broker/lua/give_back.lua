-- give_back: put deliveries that were not begun back on a queue, as if they had not been fetched.
--
-- If it does not run, they are pending with the replica that fetched them.
--
-- `to` is the same stream, or the common one for what came by a replica's own. No death is counted: the fields stay as
-- they are. What was handed over before is left alone, and what was cancelled meanwhile is only acknowledged.
--
-- Returns how many went back.

local given = 0
for _, entry_id in ipairs(entry_ids) do
  local _, fields = take_entry(stream, entry_id)
  if fields then
    requeue(to, stream, entry_id, fields, request_prefix)
    given = given + 1
  end
end
carry_out()
return given
