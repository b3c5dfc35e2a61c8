-- A call ends.
-- commit: acknowledge one delivery and publish all it caused, or do nothing.
-- KEYS  own stream, request, epoch, stream of each move...
-- ARGV  entry id, request id, epoch, attempt, step, state or '', payload or '', moves
-- Returns OK; CLOSED (the request ended meanwhile: no effects), HELD (it is a dead letter: the effects are kept for
-- its replay), GONE (the broker no longer knows it), STALE (another attempt committed), DUP (this attempt did; its
-- reply was lost), BADKEY (a queue's key holds something else: nothing happened), or the broker's epoch behind
-- 'EPOCH ' when that is another one: nothing happened.
-- Invariant: a delivery is pending, or its effects are visible. Never both.
local function commit(keys, argv)
  local stream, request, entry = keys[1], keys[2], argv[1]
  local epoch = current_epoch(keys[3])
  if epoch ~= argv[3] then return 'EPOCH ' .. epoch end
  local by = argv[5] .. ':' .. argv[4]
  local state, header, last = unpack(redis.call('HMGET', request, 'st', 'h', 'by'))
  for k = 4, #keys do
    local kind = redis.call('TYPE', keys[k]).ok
    if kind ~= 'stream' and kind ~= 'none' then return 'BADKEY' end
  end
  local dead = state ~= 'o' and dead_of(request)
  local found = dead and redis.call('XRANGE', stream, entry, entry)[1]
  local is_mine = redis.call('XACK', stream, GROUP, entry) == 1
  if is_mine then
    redis.call('XDEL', stream, entry)
  elseif last == by then
    return 'DUP'
  end
  if dead and redis.call('EXISTS', dead) == 0 then return state and 'CLOSED' or 'GONE' end
  if not is_mine then return 'STALE' end
  if dead then
    if argv[6] == '' then
      apply(keys, argv, 8, dead, redis.call('HGET', dead, 'h'), hold)
    elseif found then
      held(request, stream, found[2])
    end
    return 'HELD'
  end
  if argv[6] ~= '' then
    if argv[6] ~= 'd' then unqueue(request) end
    finish(request, argv[2], argv[6], argv[7], by)
  else
    local notes = { 'by', by }
    apply(keys, argv, 8, request, header, enqueue, notes)
    redis.call('HSET', request, unpack(notes))
  end
  return 'OK'
end

redis.register_function{ function_name = 'qserve_commit_@', callback = commit, flags = { 'allow-oom' } }
