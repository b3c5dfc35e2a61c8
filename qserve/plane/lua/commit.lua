-- A call ends.
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

redis.register_function{ function_name = 'qserve_commit_@', callback = commit, flags = { 'allow-oom' } }
