-- replay: open the request of a dead letter again, under its id, where it stopped.
--
-- If it does not run, the dead letter is as it was.
--
-- Returns OK; or, when nothing happened, NONE (there is no such dead letter), OPEN (its request runs) or MOVED (a
-- queue is gone).

local count = tonumber(redis.call('HGET', letter, Field.CALLS) or 0)
if count == 0 then return Reply.NONE end
if is_open(request) then return Reply.OPEN end
local calls = {}
for k = 1, count do
  local stream, fields = unpack(cmsgpack.unpack(redis.call('HGET', letter, KEPT_CALL .. k)))
  local target = moved[stream] or stream
  if not is_stream(target) then return Reply.MOVED end
  local renewed = with(fields, { [CallField.HEADER] = header })
  calls[k] = { stream = target, step = by_name(fields)[CallField.STEP], fields = renewed }
end
redis.call('HDEL', letter, Field.WHY, Field.AT, Field.FAILURE, Field.HISTORY, Field.CALLS)
for k = 1, count do redis.call('HDEL', letter, KEPT_CALL .. k) end
redis.call('HSET', letter, Field.STATE, State.OPEN, Field.HEADER, header, Field.MAILBOX, '', Field.KEEP, keep_ms)
redis.call('RENAME', letter, request)
redis.call('PEXPIRE', request, ttl_ms)
redis.call('ZREM', dead_letters_of(request), request_id)
for _, call in ipairs(calls) do enqueue(request, call.stream, call.step, call.fields) end
return Reply.OK
