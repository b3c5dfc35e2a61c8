-- retire: remove the queues of a version, and the zsets beside them, once nothing of it is in flight.
--
-- If it does not run, the queues are there, and supervisors try again.
--
-- A delivery stays in its stream until its commit, which forwards in the same function call: no request of this version
-- is open when all streams are empty and nothing waits beside them. With `force`, what is left goes on in the next
-- version where it can (see `successor_of`), and fails where it cannot; RETIRE_COUNT calls of each queue at a time.
--
-- Returns 1 when the queues are gone, else 0.

-- whether a queue, or the zset beside it, holds something of an open request
local function is_needed(key)
  if kind_of(key) == 'stream' then return redis.call('XLEN', key) > 0 end
  for _, member in ipairs(kind_of(key) == 'zset' and redis.call('ZRANGE', key, 0, -1) or empty) do
    local request = read_member(member)
    if request and is_open(request) then return true end
  end
  return false
end

-- move a call to the next version, or fail its request; a dead letter keeps the call for its replay
local function leave_version(request, stream, step, fields, is_held)
  if is_open(request) then
    local is_session = step == SESSION and is_held -- it stays with its replica
    local queue = not is_session and successor_of(request, stream, next_queues, other_graphs, is_same_code, is_held)
    if not queue then
      remove_calls(request) -- those that were moved before it
      finish(request, id_of(request), State.FAILED, failure)
    elseif is_call(fields) then
      enqueue(request, queue, step, fields)
    else
      wait_elsewhere(request, step, stream, queue, request_prefix)
    end
  elseif exists(dead_letter_of(request)) and is_call(fields) then
    keep_call(dead_letter_of(request), stream, step, fields)
  end
end

for _, key in ipairs(queues) do
  if not force and is_needed(key) then return 0 end
end
local is_done = 1
for _, key in ipairs(queues) do
  local entries = kind_of(key) == 'stream' and redis.call('XRANGE', key, '-', '+', 'COUNT', RETIRE_COUNT) or empty
  if kind_of(key) == 'zset' then
    for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do
      local request, fields = read_member(member)
      if request then
        local step = is_call(fields) and by_name(fields)[CallField.STEP] or fields[1] or ''
        local keeper = keeper_of(request)
        if not is_call(fields) or (keeper and is_postponed(keeper, step)) then
          leave_version(request, queue_of(key), step, fields)
        end
      end
    end
  end
  for _, entry in ipairs(entries) do
    local call = by_name(entry[2])
    local id, step = request_id_of(call[CallField.HEADER]), call[CallField.STEP] or ''
    local keeper = id and keeper_of(request_prefix .. id)
    if keeper and is_named(keeper, step, key, entry[1]) then
      local pending = redis.pcall('XPENDING', key, GROUP, entry[1], entry[1], 1)
      leave_version(request_prefix .. id, key, step, entry[2], #pending > 0)
    end
  end
  if #entries < RETIRE_COUNT then
    write('DEL', key)
  else
    is_done = 0
    for _, entry in ipairs(entries) do remove_entry(key, entry[1]) end
  end
end
carry_out()
return is_done
