-- Calls that will not be run again by themselves, kept for people to look at and to replay.
--
-- A dead letter is a hash under its request's id. It holds what the request held (the joins that other
-- branches have filled, the header), and
--   !why     'deaths', 'retries' or 'unreadable'           !at   Unix ms
--   !failure what its caller was told                      !y    history of the call that failed
--   !n       number of its calls, !1, !2 ... each a cmsgpack of { stream, fields }; the first one failed
-- The branches of its request that still ran, or come to an end later, add what they would have started: a
-- replay then goes on with all of it. Ids by their time are in one zset.
local DEAD_TTL = 7 * 24 * 3600 * 1000
local DEAD_LIMIT = 10000

local function dead_index(request)
  return string.match(request, '^.-}:') .. 'dead'
end

-- the id of a dead letter of which nobody knows whose it is
local function made_up_id(stream, entry)
  return string.sub(redis.sha1hex(stream .. entry), 1, ID_CHARS)
end

-- a call of a request that has ended: it is kept when that request is a dead letter. Answers whether it was.
local function held(request, stream, fields)
  local dead = dead_of(request)
  if redis.call('EXISTS', dead) == 0 then return false end
  hold(dead, stream, '', with(fields, { x = false, t = false }))
  return true
end

local function drop_oldest(request, now)
  local index = dead_index(request)
  redis.call('ZREMRANGEBYSCORE', index, '-inf', now - DEAD_TTL)
  local over = redis.call('ZCARD', index) - DEAD_LIMIT
  if over <= 0 then return end
  for _, id in ipairs(redis.call('ZRANGE', index, 0, over - 1)) do
    redis.call('DEL', string.match(request, '^.-}:') .. 'd:' .. id)
    redis.call('ZREM', index, id)
  end
  redis.call('INCRBY', index .. ':dropped', over)
  redis.call('PEXPIRE', index .. ':dropped', DEAD_TTL)
end

-- make a call that was taken off its queue a dead letter, and fail its request.
--   known   false for a call of which nobody knows whose it is: it is kept although there is no such request
-- A request that has ended meanwhile needs no dead letter: nobody waits for it.
local function bury_call(request, id, stream, fields, why, failure, log, known)
  if held(request, stream, fields) then return end
  local state = redis.call('HGET', request, 'st')
  if state ~= 'o' and (state or known) then return end
  local dead, now = dead_of(request), now_ms()
  if state then
    redis.call('COPY', request, dead)
    -- who waited is told now; whoever asks after a replay asks by the id
    redis.call('HDEL', dead, 'w', 'sent', 'taken', 'by')
    redis.call('HSET', dead, 'to', '')
  end
  redis.call('HSET', dead, '!why', why, '!at', now, '!failure', failure, '!y', log)
  hold(dead, stream, '', with(fields, { x = false, t = false, y = log }))
  redis.call('PEXPIRE', dead, DEAD_TTL)
  redis.call('ZADD', dead_index(request), now, id)
  redis.call('PEXPIRE', dead_index(request), DEAD_TTL)
  drop_oldest(request, now)
  if state then finish(request, id, 'f', failure) end
end

-- bury: end a delivery that is not worth another try, or that cannot be read, as a dead letter.
-- KEYS  own stream, request   ARGV  entry id, request id, why, failure payload, replica, what happened,
--       1 when the message told whose call it is; otherwise the id is what its first bytes claim
-- Returns OK, or STALE when the delivery was committed or handed over before.
local function bury(keys, argv)
  local found = redis.call('XRANGE', keys[1], argv[1], argv[1])[1]
  if redis.call('XACK', keys[1], GROUP, argv[1]) == 0 then return 'STALE' end
  redis.call('XDEL', keys[1], argv[1])
  if not found then return 'OK' end
  local request, id, known = keys[2], argv[2], argv[7] == '1'
  if not known and (not id_of(id) or redis.call('HGET', request, 'st') ~= 'o') then
    id = made_up_id(keys[1], argv[1])
    request = string.gsub(dead_index(keys[1]), 'dead$', 'r:') .. id
  end
  bury_call(request, id, keys[1], found[2], argv[3], argv[4], history(found[2], argv[5], argv[6]), known)
  return 'OK'
end

-- replay: open the request of a dead letter again, under its id, where it stopped.
-- KEYS  dead letter, request   ARGV  request id, header, life ms, keep ms, then pairs of an old queue and a new one
-- Returns OK; NONE (no such dead letter), OPEN (it runs), MOVED (a queue is gone): all is as it was then.
local function replay(keys, argv)
  local dead, request = keys[1], keys[2]
  local count = tonumber(redis.call('HGET', dead, '!n') or 0)
  if count == 0 then return 'NONE' end
  if redis.call('HGET', request, 'st') == 'o' then return 'OPEN' end
  local moved = {}
  for k = 5, #argv, 2 do moved[argv[k]] = argv[k + 1] end
  local calls = {}
  for k = 1, count do
    local stream, fields = unpack(cmsgpack.unpack(redis.call('HGET', dead, '!' .. k)))
    calls[k] = { moved[stream] or stream, with(fields, { h = argv[2] }), named(fields).s }
    if not is_stream(calls[k][1]) then return 'MOVED' end
  end
  redis.call('HDEL', dead, '!why', '!at', '!failure', '!y', '!n')
  for k = 1, count do redis.call('HDEL', dead, '!' .. k) end
  redis.call('HSET', dead, 'st', 'o', 'h', argv[2], 'to', '', 'keep', argv[4])
  redis.call('RENAME', dead, request)
  redis.call('PEXPIRE', request, argv[3])
  redis.call('ZREM', dead_index(request), argv[1])
  for _, call in ipairs(calls) do enqueue(request, call[1], call[3], call[2]) end
  return 'OK'
end

-- purge: throw dead letters away.
-- KEYS  index, dead letter...   ARGV  request id...   Returns how many there were.
local function purge(keys, argv)
  redis.call('ZREM', keys[1], unpack(argv))
  return redis.call('DEL', unpack(keys, 2))
end

redis.register_function{ function_name = 'qserve_bury_@', callback = bury, flags = { 'allow-oom' } }
redis.register_function('qserve_replay_@', replay)
redis.register_function{ function_name = 'qserve_purge_@', callback = purge, flags = { 'allow-oom' } }
