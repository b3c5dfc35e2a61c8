-- wake: put the calls whose wait is over back on their queue.
--
-- If it does not run, they wait for the next time; supervisors call it all the while.
--
-- Returns how many members of `delayed` it has handled, WAKE_COUNT at most; calls of requests that have ended
-- meanwhile are dropped.

local due = redis.call('ZRANGEBYSCORE', delayed, '-inf', now_ms(), 'LIMIT', 0, WAKE_COUNT)
if #due == 0 then
  -- later than any wait can last: the clock was set back since
  due = redis.call('ZRANGEBYSCORE', delayed, now_ms() + LONGEST_WAIT_MS, '+inf', 'LIMIT', 0, WAKE_COUNT)
end
for _, member in ipairs(due) do
  local fields = cmsgpack.unpack(member)
  local request = table.remove(fields, 1)
  local is_wanted = is_open(request)
  if is_wanted and not is_call(fields) then
    redis.call('ZADD', delayed, now_ms() + RECHECK_MS, member)
  else
    redis.call('ZREM', delayed, member)
    if is_wanted then
      enqueue(request, stream, by_name(fields)[CallField.STEP], fields)
    elseif is_call(fields) then
      keep_if_dead(request, stream, fields)
    end
  end
end
return #due
