-- submit: accept a request with all that it needs, or refuse it and leave everything as it was.
--
-- If it does not run, nothing is known of the request. Sent again, it changes nothing: a request is accepted once.
--
-- Returns OK; DUP (accepted before); { FULL, seconds } (a queue has reached its limit, and is worth another try after
-- so long); MOVED (the queues belong to a version that is gone); LOST (an argument's result is no longer known); or
-- the broker's epoch behind OTHER_EPOCH. With a fingerprint, a request that was accepted before is followed: returns
-- { state, result }, and the mailbox will be notified; MISMATCH when the earlier request asked for something else.

local known = current_epoch(epoch_key)
if known ~= epoch then return OTHER_EPOCH .. known end
if redis.call('EXISTS', request) == 1 then
  -- a write all the same: WAIT asks for the replicas' copies of what its connection has written
  redis.call('HSET', request, Field.STATE, redis.call('HGET', request, Field.STATE))
  if fingerprint == '' then return Reply.DUP end
  return redis.call('HGET', request, Field.FINGERPRINT) == fingerprint and follow(request, mailbox) or Reply.MISMATCH
end
for k = 1, #streams do
  local stream = streams[k]
  if not is_stream(stream) then return Reply.MOVED end
  local limit = (limits[k] or -1) + 0
  if limit >= 0 and count_waiting(stream) >= limit then return { Reply.FULL, retry_after_s(stream) } end
end
for k = 1, #awaited do
  local argument = awaited[k]
  argument.state, argument.result = unpack(redis.call('HMGET', argument.request, Field.STATE, Field.RESULT))
  if not argument.state then return Reply.LOST end
end

-- from here on it is accepted
if model_id ~= '' then streams[1] = holder_of(streams[1], model_id, max_ongoing) or streams[1] end
local notes = { Field.STATE, State.OPEN, Field.HEADER, header, Field.MAILBOX, mailbox, Field.KEEP, keep_ms }
if fingerprint ~= '' then
  notes[#notes + 1] = Field.FINGERPRINT
  notes[#notes + 1] = fingerprint
end
apply(moves, streams, request, header, enqueue, notes)
redis.call('HSET', request, unpack(notes))
redis.call('PEXPIRE', request, ttl_ms)
for k = 1, #awaited do
  local argument = awaited[k]
  local stream, step, needs, slot = streams[argument.place], argument.step, argument.needs, argument.slot
  if argument.state == State.OPEN then
    -- the stream of all replicas: one that holds the model now may be gone when the result comes
    local common = common_of(stream)
    add_waiter(argument.request, cmsgpack.pack({
      request = request, request_id = request_id, header = header,
      stream = common, step = step, needs = needs, slot = slot,
    }))
    note_waiting(request, common, step, ttl_ms)
  elseif argument.state == State.DONE then
    fill(request, stream, header, step, needs, { { slot, argument.result } }, enqueue)
  else
    remove_calls(request)
    finish(request, request_id, argument.state, argument.result)
    return Reply.OK
  end
end
return Reply.OK
