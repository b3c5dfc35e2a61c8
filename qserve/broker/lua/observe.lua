-- observe: return the events of a request after one of them, and have what happens from now on written down.
--
-- If it does not run, only what its code says of its progress is written down. Once it has run, each replica that runs
-- a call of the request has a message in its mailbox, and those that begin later learn it from `strays`.
--
-- Returns { id, event, id, event ... }.

local state, events = unpack(hmget(request, { Field.STATE, Field.EVENTS }))
local found, log = {}, events_of(request)
local is_log = may_be(log, 'stream')
for _, entry in ipairs(is_log and redis.call('XRANGE', log, '(' .. after, '+', 'COUNT', EVENTS_KEPT) or empty) do
  found[#found + 1] = entry[1]
  found[#found + 1] = entry[2][2]
end
if state == State.OPEN and not events then
  hset(request, Field.EVENTS, 0)
  announce_reader(request, request_id)
end
carry_out()
return found
