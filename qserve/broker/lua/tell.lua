-- tell: deliver a part of what the client of a WebSocket has sent to the replica of its session, in order and once.
--
-- If it does not run, the part is missing, and the gateway sends it again or ends the session.
--
-- Returns { how many parts the application has not yet taken, how many items the replica has sent }; {} when the
-- session has ended, or no replica runs it. A number that was told before, or -1, only asks.

-- of a request that has ended, no places are left
local stream, entry = string.match(hget(request, PLACE .. SESSION) or '', '^(.+) (%d+%-%d+)$')
if not stream then return {} end
local told = count_in(request, Field.TOLD)
if number == told then
  local running = redis.pcall('XPENDING', stream, GROUP, entry, entry, 1)[1]
  if not running then return {} end
  told = told + 1
  hset(request, Field.TOLD, told)
  deliver(mailbox_of(stream, running[2]), request_id, TOLD, payload)
end
local found = { math.max(0, told - count_in(request, Field.HEARD)), count_in(request, Field.SENT) }
carry_out()
return found
