-- replay: open the request of a dead letter again, under its id, where it stopped.
--
-- If it does not run, the dead letter is as it was.
--
-- Returns OK; or, when nothing happened, NONE (there is no such dead letter), OPEN (its request runs) or MOVED (a
-- queue is gone).

local count = count_in(letter, Field.CALLS)
if count == 0 then return Reply.NONE end
if is_open(request) then return Reply.OPEN end
local calls, index = {}, dead_letters_of(request)
for k = 1, count do
  local stream, fields = unpack(cmsgpack.unpack(hget(letter, KEPT_CALL .. k)))
  local target = moved[stream] or stream
  if not is_stream(target) then return Reply.MOVED end
  calls[k] = { target, by_name(fields)[CallField.STEP] or '', with(fields, { [CallField.HEADER] = header }) }
end
check(index, 'zset')
check(request, 'hash')
uncount_bytes(letter)
write('RENAME', letter, request)
write('ZREM', index, request_id)
for _, name in ipairs({ Field.WHY, Field.AT, Field.FAILURE, Field.HISTORY, Field.CALLS }) do hdel(request, name) end
for k = 1, count do hdel(request, KEPT_CALL .. k) end
hset(request, Field.STATE, State.OPEN)
hset(request, Field.HEADER, header)
hset(request, Field.MAILBOX, '')
hset(request, Field.KEEP, keep_ms)
lives[request] = ttl_ms
payloads.count_all(request, hget(letter, Field.VALUES), 0, ttl_ms + 0)
for _, call in ipairs(calls) do enqueue(request, unpack(call)) end
carry_out()
return Reply.OK
