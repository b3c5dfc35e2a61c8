-- Calls that wait for another try.

-- milliseconds that no wait is longer than (`workers/qserve_workers/replica/retries.py`)
local LONGEST_WAIT = 180000

-- postpone: end one try of a call; it comes back after a while.
-- KEYS  own stream, request, delayed zset
-- ARGV  entry id, wait ms, tries so far, life ms, replica, what happened
-- Returns OK, or STALE when the delivery was committed or handed over before.
local function postpone(keys, argv)
  local found = redis.call('XRANGE', keys[1], argv[1], argv[1])[1]
  if redis.call('XACK', keys[1], GROUP, argv[1]) == 0 then return 'STALE' end
  redis.call('XDEL', keys[1], argv[1])
  if not found then return 'OK' end
  if redis.call('HGET', keys[2], 'st') ~= 'o' then
    held(keys[2], keys[1], found[2])
    return 'OK'
  end
  local fields = with(found[2], { t = argv[3], x = false, y = history(found[2], argv[5], argv[6]) })
  table.insert(fields, 1, keys[2])
  redis.call('ZADD', keys[3], now_ms() + argv[2], cmsgpack.pack(fields))
  -- as long as the longest-lived of what waits there
  redis.call('PEXPIRE', keys[3], math.max(redis.call('PTTL', keys[3]), tonumber(argv[4])))
  return 'OK'
end

-- wake: put the calls whose wait is over back on their queue.
-- KEYS  delayed zset, stream
-- Returns how many; requests that have ended meanwhile are dropped.
local function wake(keys)
  local due = redis.call('ZRANGEBYSCORE', keys[1], '-inf', now_ms(), 'LIMIT', 0, 100)
  if #due == 0 then
    -- further off than any wait can be: the clock was set back since
    due = redis.call('ZRANGEBYSCORE', keys[1], now_ms() + LONGEST_WAIT, '+inf', 'LIMIT', 0, 100)
  end
  for _, member in ipairs(due) do
    local fields = cmsgpack.unpack(member)
    local request = table.remove(fields, 1)
    local is_open = redis.call('HGET', request, 'st') == 'o'
    if is_open and not is_call(fields) then
      redis.call('ZADD', keys[1], now_ms() + LOOK_AGAIN, member)
    else
      redis.call('ZREM', keys[1], member)
      if is_open then
        enqueue(request, keys[2], named(fields).s, fields)
      elseif is_call(fields) then
        held(request, keys[2], fields)
      end
    end
  end
  return #due
end

redis.register_function{ function_name = 'qserve_postpone_@', callback = postpone, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'qserve_wake_@', callback = wake, flags = { 'allow-oom' } }
