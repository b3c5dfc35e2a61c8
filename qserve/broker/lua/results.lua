-- Who asks for results, and who wants them no more.
-- watch: the state of a request, with its result when it has one; otherwise tell `mailbox` when it has.
-- KEYS  request   ARGV  mailbox
-- Returns {state, result}; {'', ''} when nothing is known of it.
local function watch(keys, argv)
  return follow(keys[1], argv[1])
end

-- look: the same without a mailbox. It writes nothing, and so answers while a full disk forbids every write.
-- KEYS  request
local function look(keys)
  return follow(keys[1], '')
end

-- emit: one item of a streamed result, in order and once, however often its call is run.
-- KEYS  request   ARGV  request id, number of the item (from 0), payload
-- Returns how many items the reader has not yet taken, or -1 when the request has ended: stop.
local function emit(keys, argv)
  local request, number = keys[1], tonumber(argv[2])
  local state, mailbox, sent, taken = unpack(redis.call('HMGET', request, 'st', 'to', 'sent', 'taken'))
  if state ~= 'o' then return -1 end
  sent, taken = tonumber(sent or 0), tonumber(taken or 0)
  if number == sent then
    redis.call('HSET', request, 'sent', sent + 1)
    if mailbox ~= '' then deliver(mailbox, argv[1], 'i', argv[3]) end
    sent = sent + 1
  end
  return sent - taken
end

-- take: the reader has taken this many items more.
-- KEYS  request   ARGV  count
local function take(keys, argv)
  if redis.call('HGET', keys[1], 'st') ~= 'o' then return 0 end
  return redis.call('HINCRBY', keys[1], 'taken', argv[1])
end

-- forget: nobody will ask for these results again.
-- KEYS  request...
local function forget(keys)
  for _, request in ipairs(keys) do
    local state = redis.call('HGET', request, 'st')
    if state == 'o' then
      redis.call('HSET', request, 'keep', 0)
    elseif state then
      redis.call('DEL', request)
    end
  end
  return 'OK'
end

-- close: end an open request without a result (cancelled, expired, refused by the gateway).
-- KEYS  request   ARGV  request id, state, payload
-- Returns 1 when this call ended it, 0 when it had ended before.
local function close(keys, argv)
  if redis.call('HGET', keys[1], 'st') ~= 'o' then return 0 end
  unqueue(keys[1])
  finish(keys[1], argv[1], argv[2], argv[3])
  return 1
end

redis.register_function{ function_name = 'qserve_watch_@', callback = watch, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'qserve_look_@', callback = look, flags = { 'no-writes' } }
redis.register_function{ function_name = 'qserve_emit_@', callback = emit, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'qserve_take_@', callback = take, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'qserve_forget_@', callback = forget, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'qserve_close_@', callback = close, flags = { 'allow-oom' } }
