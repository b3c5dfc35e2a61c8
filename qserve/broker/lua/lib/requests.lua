-- Requests. Each is a hash. Its fields are `Field` in qserve/wire/outcome.py, and
--   <step>.<slot>  values of a join                        <step>.n  how many slots of it are filled
--   e:<step>       stream and id of the last entry that stood for a step; it may be gone
-- A waiter is a cmsgpack: { mailbox }, or { request, request_id, header, stream, step, needs, slot } of a call that
-- takes the result as an argument.

-- every broker gets an epoch when it is first used: another one than was read before means that data was lost
local function current_epoch(key)
  return redis.call('GET', key) or ''
end

local function is_open(request)
  return redis.call('HGET', request, Field.STATE) == State.OPEN
end

local function deliver(mailbox, request_id, state, payload)
  -- the result is stored as well: a mailbox of another type must not undo the function that delivers to it
  local length = redis.pcall('RPUSH', mailbox, request_id .. state .. payload)
  -- its reader empties it again and again: only a list that nobody reads, or that is crowded, needs more time
  if length == 1 or type(length) == 'number' and length > MAILBOX_CROWDED then
    redis.call('PEXPIRE', mailbox, MAILBOX_TTL_MS)
  end
end

local function add_waiter(request, waiter)
  redis.call('HSET', request, Field.WAITERS .. redis.call('HINCRBY', request, Field.WAITERS, 1), waiter)
end

local finish

local function notify(waiter, request_id, state, payload)
  local w = cmsgpack.unpack(waiter)
  if w.mailbox then return deliver(w.mailbox, request_id, state, payload) end
  local slots = { { w.slot, payload } }
  if not is_open(w.request) then
    local letter = dead_letter_of(w.request)
    -- a replay goes on with it: nobody will send this result a second time
    if state == State.DONE and redis.call('EXISTS', letter) == 1 then
      fill(letter, w.stream, redis.call('HGET', letter, Field.HEADER), w.step, w.needs, slots, keep_call)
    end
  elseif not is_stream(w.stream) then -- only a replay waits for a queue that may be gone
    finish(w.request, w.request_id, State.FAILED, DELETED)
  elseif state == State.DONE then
    if fill(w.request, w.stream, w.header, w.step, w.needs, slots, enqueue) then
      forget_waiting(w.request, w.stream, w.step)
    end
  else
    remove_calls(w.request)
    finish(w.request, w.request_id, state, payload)
  end
end

-- end a request: its result is kept for as long as was asked for, and its waiters are notified
finish = function(request, request_id, state, payload, by)
  local mailbox, more, keep, asked = unpack(
    redis.call('HMGET', request, Field.MAILBOX, Field.WAITERS, Field.KEEP, Field.FINGERPRINT)
  )
  local waiters = {}
  for k = 1, tonumber(more or 0) do waiters[k] = redis.call('HGET', request, Field.WAITERS .. k) end
  redis.call('DEL', request)
  if tonumber(keep) > 0 then
    redis.call('HSET', request, Field.STATE, state, Field.RESULT, payload, Field.COMMITTED_BY, by or '')
    if asked then redis.call('HSET', request, Field.FINGERPRINT, asked) end
    redis.call('PEXPIRE', request, keep)
  end
  if mailbox ~= '' then deliver(mailbox, request_id, state, payload) end
  for _, waiter in ipairs(waiters) do notify(waiter, request_id, state, payload) end
end

-- have a mailbox ('': none) notified when an open request has ended, once, however often it asks
-- Returns { state, result }, of an open one { state, '', header }; { '', '' } when the request is not known.
local function follow(request, mailbox)
  local state, result, owner, more, header = unpack(
    redis.call('HMGET', request, Field.STATE, Field.RESULT, Field.MAILBOX, Field.WAITERS, Field.HEADER)
  )
  if state == State.OPEN and mailbox ~= '' and mailbox ~= owner then
    local waiter = cmsgpack.pack({ mailbox = mailbox })
    for k = 1, tonumber(more or 0) do
      if redis.call('HGET', request, Field.WAITERS .. k) == waiter then return { state, '', header } end
    end
    add_waiter(request, waiter)
  end
  if state == State.OPEN then return { state, '', header } end
  return { state or '', result or '' }
end
