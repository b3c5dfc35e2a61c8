-- Calls that wait for another try.
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

redis.register_function{ function_name = 'qserve_postpone_@', callback = postpone, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'qserve_wake_@', callback = wake, flags = { 'allow-oom' } }
