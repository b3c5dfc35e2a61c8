#!lua name=qserve_@
-- The functions that move requests on. Each runs as one atomic act: either all of it happened, or nothing.
--
-- Lua does not roll back: whatever may fail is checked before the first write. `allow-oom` lets accepted
-- work drain when the broker's memory is full; `submit` goes without it, so new work is refused instead.
-- @ stands for a digest of this text: two versions live side by side during a rolling update.
--
-- A request is a hash:
--   st    'o' open, 'd' done, 'f' failed, 'c' cancelled, 'x' expired
--   h     header bytes that each of its calls carries      to    mailbox of the submitter
--   res   result (once not open)                           keep  milliseconds that the result is kept
--   w     number of further waiters, w1, w2 ... each one   by    step:attempt of the last commit
--   <step>.<slot>  values of a join                        <step>.n  how many slots of it are filled
--   as, ai         stream and id of its newest entry
--   sent, taken    items of a streamed result that were sent, and that its reader has taken
--
-- Moves (in ARGV from `i` on): count, then for each
--   'S', key index, step, n, value * n               start a step whose values are all here
--   'F', key index, step, needs, n, (slot, value) * n   fill slots of a join; start it when complete
local GROUP = 'replicas'
local MAILBOX_TTL = 120000

local function add(request, stream, header, step, deaths, values)
  local entry = { 'XADD', stream, '*', 'h', header, 's', step }
  if deaths > 0 then entry[#entry + 1] = 'x'; entry[#entry + 1] = deaths end
  for slot, value in ipairs(values) do
    entry[#entry + 1] = slot - 1
    entry[#entry + 1] = value
  end
  -- where its newest entry lies: `close` takes it off the queue
  redis.call('HSET', request, 'as', stream, 'ai', redis.call(unpack(entry)))
end

local function fill(request, stream, header, step, needs, slots)
  local filled = 0
  for _, pair in ipairs(slots) do
    filled = filled + redis.call('HSETNX', request, step .. '.' .. pair[1], pair[2])
  end
  if filled == 0 or redis.call('HINCRBY', request, step .. '.n', filled) ~= needs then return end
  local fields = {}
  for slot = 0, needs - 1 do fields[#fields + 1] = step .. '.' .. slot end
  add(request, stream, header, step, 0, redis.call('HMGET', request, unpack(fields)))
  redis.call('HDEL', request, unpack(fields))
end

local function apply(keys, argv, i, request, header)
  local count = tonumber(argv[i])
  i = i + 1
  for _ = 1, count do
    local kind, stream, step = argv[i], keys[tonumber(argv[i + 1])], argv[i + 2]
    if kind == 'S' then
      local values = {}
      for k = 1, tonumber(argv[i + 3]) do values[k] = argv[i + 3 + k] end
      add(request, stream, header, step, 0, values)
      i = i + 4 + #values
    else
      local slots, n = {}, tonumber(argv[i + 4])
      for k = 1, n do slots[k] = { argv[i + 3 + 2 * k], argv[i + 4 + 2 * k] } end
      fill(request, stream, header, step, tonumber(argv[i + 3]), slots)
      i = i + 5 + 2 * n
    end
  end
  return i
end

local function deliver(mailbox, request_id, state, payload)
  redis.call('RPUSH', mailbox, request_id .. state .. payload)
  redis.call('PEXPIRE', mailbox, MAILBOX_TTL)
end

local finish

-- one who waits for a request: a mailbox, or a call that takes the result as an argument
local function tell(waiter, request_id, state, payload)
  local w = cmsgpack.unpack(waiter)
  if w.mailbox then return deliver(w.mailbox, request_id, state, payload) end
  if redis.call('HGET', w.request, 'st') ~= 'o' then return end
  if state == 'd' then
    fill(w.request, w.stream, w.header, w.step, w.needs, { { w.slot, payload } })
  else
    finish(w.request, w.request_id, state, payload)
  end
end

finish = function(request, request_id, state, payload, by)
  local mailbox, more, keep = unpack(redis.call('HMGET', request, 'to', 'w', 'keep'))
  local waiters = {}
  for k = 1, tonumber(more or 0) do waiters[k] = redis.call('HGET', request, 'w' .. k) end
  redis.call('DEL', request)
  if tonumber(keep) > 0 then
    redis.call('HSET', request, 'st', state, 'res', payload, 'by', by or '')
    redis.call('PEXPIRE', request, keep)
  end
  if mailbox ~= '' then deliver(mailbox, request_id, state, payload) end
  for _, waiter in ipairs(waiters) do tell(waiter, request_id, state, payload) end
end

-- the stream of a replica that holds a model and is free to take a call for it; nil when there is none
--   models  hash: m:<model> to a cmsgpack of {consumer, stream}, s:<consumer> to its stream
local function holder_of(models, model, stream, max_ongoing)
  local held = redis.call('HGET', models, 'm:' .. model)
  if not held then return nil end
  local consumer, personal = unpack(cmsgpack.unpack(held))
  local busy = redis.call('XLEN', personal)
  local pending = redis.pcall('XPENDING', stream, GROUP)
  for _, one in ipairs((not pending.err and pending[4]) or {}) do
    if one[1] == consumer then busy = busy + tonumber(one[2]) end
  end
  return busy < max_ongoing and personal or nil
end

-- submit: accept a request, or refuse it and leave everything as it was.
-- KEYS  request, stream..., (with a model) the models hash of the first stream's deployment
-- ARGV  request id, header, mailbox, life ms, keep ms, model or '', calls that a replica takes at once,
--       limit of each stream (-1: none), moves,
--       count of refs, (request key, cmsgpack of the waiter, key index, step, needs, slot) for each
-- Returns OK, DUP (accepted before), FULL, MOVED (the queues belong to a version that is no more), or LOST
-- (an argument's result is no longer known).
local function submit(keys, argv)
  local request, id, header = keys[1], argv[1], argv[2]
  local models = argv[6] ~= '' and table.remove(keys) or nil
  if redis.call('EXISTS', request) == 1 then return 'DUP' end
  if #keys > 1 and redis.call('EXISTS', unpack(keys, 2)) < #keys - 1 then return 'MOVED' end
  local i = 8
  for k = 2, #keys do
    local limit = tonumber(argv[i])
    if limit >= 0 then
      local pending = redis.pcall('XPENDING', keys[k], GROUP)
      local running = (not pending.err) and pending[1] or 0
      if redis.call('XLEN', keys[k]) - running >= limit then return 'FULL' end
    end
    i = i + 1
  end
  if models then keys[2] = holder_of(models, argv[6], keys[2], tonumber(argv[7])) or keys[2] end
  redis.call('HSET', request, 'st', 'o', 'h', header, 'to', argv[3], 'keep', argv[5])
  redis.call('PEXPIRE', request, argv[4])
  i = apply(keys, argv, i, request, header)
  for k = 1, tonumber(argv[i]) do
    local at = i + 1 + (k - 1) * 6
    local other = argv[at]
    local state, result = unpack(redis.call('HMGET', other, 'st', 'res'))
    if not state then
      redis.call('DEL', request)
      return 'LOST'
    elseif state == 'o' then
      redis.call('HSET', other, 'w' .. redis.call('HINCRBY', other, 'w', 1), argv[at + 1])
    elseif state == 'd' then
      local slots = { { argv[at + 5], result } }
      fill(request, keys[tonumber(argv[at + 2])], header, argv[at + 3], tonumber(argv[at + 4]), slots)
    else
      finish(request, id, state, result)
      return 'OK'
    end
  end
  return 'OK'
end

-- commit: acknowledge one delivery and publish all it caused, or do nothing.
-- KEYS  own stream, request, stream of each move...
-- ARGV  entry id, request id, attempt, step, state or '', payload or '', moves
-- Returns OK; CLOSED (the request ended meanwhile: no effects), GONE (the broker no longer knows it),
-- STALE (another attempt committed), DUP (this attempt did; its reply was lost).
-- Invariant: a delivery is pending, or its effects are visible. Never both.
local function commit(keys, argv)
  local stream, request, entry = keys[1], keys[2], argv[1]
  local by = argv[4] .. ':' .. argv[3]
  if redis.call('XACK', stream, GROUP, entry) == 0 then
    return redis.call('HGET', request, 'by') == by and 'DUP' or 'STALE'
  end
  redis.call('XDEL', stream, entry)
  local state, header = unpack(redis.call('HMGET', request, 'st', 'h'))
  if not state then return 'GONE' end
  if state ~= 'o' then return 'CLOSED' end
  if argv[5] ~= '' then
    finish(request, argv[2], argv[5], argv[6], by)
  else
    redis.call('HSET', request, 'by', by)
    apply(keys, argv, 7, request, header)
  end
  return 'OK'
end

-- postpone: end one try of a call; it comes back after a while.
-- KEYS  own stream, request, delayed zset   ARGV  entry id, wait ms, tries so far, life ms
-- Returns OK, or STALE when the delivery was committed or handed over before.
local function postpone(keys, argv)
  local found = redis.call('XRANGE', keys[1], argv[1], argv[1])[1]
  if redis.call('XACK', keys[1], GROUP, argv[1]) == 0 then return 'STALE' end
  redis.call('XDEL', keys[1], argv[1])
  if not found or redis.call('HGET', keys[2], 'st') ~= 'o' then return 'OK' end
  local fields = { keys[2], 't', argv[3] }
  for k = 1, #found[2], 2 do
    if found[2][k] ~= 't' and found[2][k] ~= 'x' then
      fields[#fields + 1] = found[2][k]
      fields[#fields + 1] = found[2][k + 1]
    end
  end
  local now = redis.call('TIME')
  redis.call('ZADD', keys[3], now[1] * 1000 + math.floor(now[2] / 1000) + argv[2], cmsgpack.pack(fields))
  redis.call('PEXPIRE', keys[3], argv[4])
  return 'OK'
end

-- wake: put the calls whose wait is over back on their queue.
-- KEYS  delayed zset, stream
-- Returns how many; requests that have ended meanwhile are dropped.
local function wake(keys)
  local now = redis.call('TIME')
  local due = redis.call('ZRANGEBYSCORE', keys[1], '-inf', now[1] * 1000 + math.floor(now[2] / 1000), 'LIMIT', 0, 100)
  for _, member in ipairs(due) do
    redis.call('ZREM', keys[1], member)
    local fields = cmsgpack.unpack(member)
    local request = table.remove(fields, 1)
    if redis.call('HGET', request, 'st') == 'o' then
      redis.call('HSET', request, 'as', keys[2], 'ai', redis.call('XADD', keys[2], '*', unpack(fields)))
    end
  end
  return #due
end

-- watch: the state of a request, with its result when it has one; otherwise tell `mailbox` when it has.
-- KEYS  request   ARGV  cmsgpack of the waiter, or '' to look only
-- Returns {state, result}; {'', ''} when nothing is known of it.
local function watch(keys, argv)
  local state, result = unpack(redis.call('HMGET', keys[1], 'st', 'res'))
  if state == 'o' and argv[1] ~= '' then
    redis.call('HSET', keys[1], 'w' .. redis.call('HINCRBY', keys[1], 'w', 1), argv[1])
  end
  return { state or '', result or '' }
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
  local state, stream, entry = unpack(redis.call('HMGET', keys[1], 'st', 'as', 'ai'))
  if state ~= 'o' then return 0 end
  -- not yet delivered: it never will be; running: its commit finds the request closed
  if stream then redis.call('XDEL', stream, entry) end
  finish(keys[1], argv[1], argv[2], argv[3])
  return 1
end

-- reclaim: hand what a dead consumer held to the others, then remove the consumer.
-- KEYS  stream, where the calls go (the same stream, or the common one for a replica's own)
-- ARGV  consumer, deaths that make a dead letter, failure payload, request key prefix
-- A call is delivered again as a new entry that carries the number of its deaths; readers run such
-- calls alone, so only the call that kills is counted on. Returns the number of calls handed over.
local function reclaim(keys, argv)
  local stream, consumer, limit = keys[1], argv[1], tonumber(argv[2])
  local pending = redis.pcall('XPENDING', stream, GROUP, '-', '+', 1000, consumer)
  if pending.err then return 0 end
  for _, held in ipairs(pending) do
    local found = redis.call('XRANGE', stream, held[1], held[1])[1]
    redis.call('XACK', stream, GROUP, held[1])
    redis.call('XDEL', stream, held[1])
    if found then
      local fields, deaths = { 'XADD', keys[2], '*' }, 1
      local header
      for k = 1, #found[2], 2 do
        local name, value = found[2][k], found[2][k + 1]
        if name == 'x' then deaths = tonumber(value) + 1
        else fields[#fields + 1] = name; fields[#fields + 1] = value end
        if name == 'h' then header = value end
      end
      fields[#fields + 1] = 'x'
      fields[#fields + 1] = deaths
      local id = header and cmsgpack.unpack(header)[1]
      local request = argv[4] .. (id or '')
      if deaths < limit or not header then
        local entry = redis.call(unpack(fields))
        if redis.call('HGET', request, 'st') == 'o' then redis.call('HSET', request, 'as', keys[2], 'ai', entry) end
      elseif redis.call('HGET', request, 'st') == 'o' then
        finish(request, id, 'f', argv[3])
      end
    end
  end
  if #pending < 1000 then redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, consumer) end
  return #pending
end

-- advertise: say which models a replica holds, so that calls for them come to it while it is free.
-- KEYS  models hash, the replica's own stream   ARGV  consumer, life ms, model...
local function advertise(keys, argv)
  local mine = cmsgpack.pack({ argv[1], keys[2] })
  local all = redis.call('HGETALL', keys[1])
  for k = 1, #all, 2 do
    if all[k + 1] == mine then redis.call('HDEL', keys[1], all[k]) end
  end
  redis.call('HSET', keys[1], 's:' .. argv[1], keys[2])
  for k = 3, #argv do redis.call('HSET', keys[1], 'm:' .. argv[k], mine) end
  redis.call('PEXPIRE', keys[1], argv[2])
  return 'OK'
end

-- disband: what waits in the own stream of a replica that is gone goes to the common one.
-- KEYS  own stream, common stream, models hash   ARGV  consumer, request key prefix
-- What it had begun is handed over by `reclaim` before. Returns the number of calls moved.
local function disband(keys, argv)
  local mine = cmsgpack.pack({ argv[1], keys[1] })
  local all = redis.call('HGETALL', keys[3])
  for k = 1, #all, 2 do
    if all[k + 1] == mine or all[k] == 's:' .. argv[1] then redis.call('HDEL', keys[3], all[k]) end
  end
  local left = redis.call('XRANGE', keys[1], '-', '+')
  for _, found in ipairs(left) do
    local fields, header = { 'XADD', keys[2], '*' }, nil
    for k = 1, #found[2], 2 do
      fields[#fields + 1] = found[2][k]
      fields[#fields + 1] = found[2][k + 1]
      if found[2][k] == 'h' then header = found[2][k + 1] end
    end
    local entry = redis.call(unpack(fields))
    local request = argv[2] .. (header and cmsgpack.unpack(header)[1] or '')
    if redis.call('HGET', request, 'st') == 'o' then redis.call('HSET', request, 'as', keys[2], 'ai', entry) end
  end
  redis.call('DEL', keys[1])
  return #left
end

-- retire: remove the queues of a version once nothing of it is under way.
-- KEYS  stream or delayed zset...   ARGV  1 to fail what is left, failure payload, request key prefix
-- A delivery stays in its stream until its commit, which forwards in the same act: all streams empty means that
-- no request of this version is open. Returns 1 when the queues are gone, else 0.
local function retire(keys, argv)
  local streams = {}
  for _, key in ipairs(keys) do
    if redis.call('TYPE', key).ok == 'zset' then
      if argv[1] ~= '1' then return 0 end
      for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do
        local request = cmsgpack.unpack(member)[1]
        if redis.call('HGET', request, 'st') == 'o' then
          finish(request, string.sub(request, #argv[3] + 1), 'f', argv[2])
        end
      end
      redis.call('DEL', key)
    else
      streams[#streams + 1] = key
      if redis.call('XLEN', key) > 0 and argv[1] ~= '1' then return 0 end
    end
  end
  for _, stream in ipairs(streams) do
    for _, found in ipairs(redis.call('XRANGE', stream, '-', '+')) do
      for k = 1, #found[2], 2 do
        if found[2][k] == 'h' then
          local id = cmsgpack.unpack(found[2][k + 1])[1]
          local request = argv[3] .. id
          if redis.call('HGET', request, 'st') == 'o' then finish(request, id, 'f', argv[2]) end
        end
      end
    end
    redis.call('DEL', stream)
  end
  return 1
end

redis.register_function{ function_name = 'qserve_postpone_@', callback = postpone, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'qserve_wake_@', callback = wake, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'qserve_advertise_@', callback = advertise, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'qserve_disband_@', callback = disband, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'qserve_retire_@', callback = retire, flags = { 'allow-oom' } }
redis.register_function('qserve_submit_@', submit)
redis.register_function{ function_name = 'qserve_commit_@', callback = commit, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'qserve_watch_@', callback = watch, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'qserve_emit_@', callback = emit, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'qserve_take_@', callback = take, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'qserve_forget_@', callback = forget, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'qserve_close_@', callback = close, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'qserve_reclaim_@', callback = reclaim, flags = { 'allow-oom' } }
