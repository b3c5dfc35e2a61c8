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
  local request, fields = read_member(member)
  if request and is_open(request) and not is_call(fields) then
    write('ZADD', delayed, now_ms() + RECHECK_MS, member)
  else
    write('ZREM', delayed, member)
    local keeper = request and is_call(fields) and keeper_of(request)
    local step = keeper and by_name(fields)[CallField.STEP] or ''
    if keeper and is_postponed(keeper, step) then
      local put = keeper == request and enqueue or keep_call
      put(keeper, stream, step, fields)
    end
  end
end
local count = #due
carry_out()
return count
