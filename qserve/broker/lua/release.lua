-- release: note that the reader of a stream has read items with stored values.
--
-- If it does not run, the values are kept for as long as the request of the stream.
--
-- Returns OK, or { OK, names of the stored values that nobody holds any more }.

for _, value in ipairs(values) do payloads.count(value, id_of(value), -1) end
local reply = payloads.reply(Reply.OK)
carry_out()
return reply
