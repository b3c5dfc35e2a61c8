-- submit: accept a request with all that it needs, or refuse it and leave everything as it was.
--
-- If it does not run, nothing is known of the request. Sent again, it changes nothing: a request is accepted once.
--
-- Returns OK; DUP (accepted before); { FULL, seconds } (a queue has reached its limit, and is worth another try after
-- so long); CROWDED (its result is left for a reader, and there is no room for more of these); HOOKED (as many webhooks
-- as there may be are not delivered yet); MOVED (the queues belong to a version that is gone); LOST (an argument's
-- result is no longer known); or the broker's epoch behind OTHER_EPOCH.
-- With a fingerprint, a request that was accepted before is followed: returns { state, result }, and the mailbox will
-- be notified; MISMATCH when the earlier request asked for something else.

local known = current_epoch(epoch_key)
if known ~= epoch then return OTHER_EPOCH .. known end
-- (the values of MOVED and of another epoch are sent again)
local function refuse(reply)
  payloads.drop(request, values)
  carry_out()
  return reply
end
if redis.call('EXISTS', request) == 1 then
  -- a write all the same: WAIT asks for the replicas' copies of what its connection has written
  hset(request, Field.STATE, hget(request, Field.STATE))
  local reply = Reply.DUP
  if fingerprint ~= '' then
    reply = hget(request, Field.FINGERPRINT) == fingerprint and follow(request, mailbox) or Reply.MISMATCH
  end
  return refuse(reply)
end
for k = 1, #streams do
  local stream = streams[k]
  if not is_stream(stream) then return Reply.MOVED end
  local limit = (limits[k] or -1) + 0
  if limit >= 0 and count_waiting(stream) >= limit then return refuse({ Reply.FULL, retry_after_s(stream) }) end
end
local failed
for k = 1, #awaited do
  local argument = awaited[k]
  argument.state, argument.result, argument.values = unpack(
    hmget(argument.request, { Field.STATE, Field.RESULT, Field.VALUES })
  )
  if not argument.state then return refuse(Reply.LOST) end
  if argument.state ~= State.OPEN and argument.state ~= State.DONE then failed = failed or argument end
end
if is_left and not may_leave(request, keep_ms) then return refuse(Reply.CROWDED) end
if webhook ~= '' and redis.call('ZCARD', webhooks_of(request)) >= WEBHOOKS_LIMIT then return refuse(Reply.HOOKED) end

-- from here on it is accepted
hset(request, Field.STATE, State.OPEN)
hset(request, Field.HEADER, header)
hset(request, Field.MAILBOX, mailbox)
hset(request, Field.KEEP, keep_ms)
if is_left then hset(request, Field.LEFT, 1) end
if is_traced then
  hset(request, Field.TRACED, now_ms())
  hset(request, Field.QUEUE, streams[1] or '')
  hset(request, Field.EVENTS, 0)
end
if fingerprint ~= '' then hset(request, Field.FINGERPRINT, fingerprint) end
lives[request] = ttl_ms
if webhook ~= '' then add_waiter(request, expect_end(request, request_id, webhook, ttl_ms)) end
if failed then
  local awaited_id = id_of(failed.request)
  finish(request, request_id, failed.state, inherited(header, awaited_id, failed.result or ''))
else
  if model_id ~= '' then streams[1] = holder_of(streams[1], model_id, max_ongoing) or streams[1] end
  apply(moves, streams, request, header, enqueue)
  payloads.change(request, values)
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
    else
      if argument.values then payloads.change(request, payloads.read(argument.values)) end
      fill(request, stream, header, step, needs, { { slot, argument.result or '' } }, enqueue)
    end
  end
end
carry_out()
return Reply.OK
