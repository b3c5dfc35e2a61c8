-- retire: remove the queues of a version, and the zsets beside them, once nothing of it is in flight.
--
-- If it does not run, the queues are there, and supervisors try again.
--
-- A delivery stays in its stream until its commit, which forwards in the same function call: no request of this version
-- is open when all streams are empty and nothing waits beside them. With `force`, what is left fails.
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

-- fail the request of a call whose version is gone; a dead letter keeps the call for its replay
local function abandon(request, stream, step, fields)
  if is_open(request) then
    finish(request, string.match(request, '[^:]*$'), State.FAILED, failure)
  elseif exists(dead_letter_of(request)) and is_call(fields) then
    keep_call(dead_letter_of(request), stream, step, fields)
  end
end

for _, key in ipairs(queues) do
  if not force and is_needed(key) then return 0 end
end
for _, key in ipairs(queues) do
  if kind_of(key) == 'zset' then
    for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do
      local request, fields = read_member(member)
      if request then abandon(request, queue_of(key), by_name(fields)[CallField.STEP] or '', fields) end
    end
  elseif kind_of(key) == 'stream' then
    for _, entry in ipairs(redis.call('XRANGE', key, '-', '+')) do
      local call = by_name(entry[2])
      local id, step = request_id_of(call[CallField.HEADER]), call[CallField.STEP] or ''
      local keeper = id and keeper_of(request_prefix .. id)
      if keeper and is_named(keeper, step, key, entry[1]) then abandon(request_prefix .. id, key, step, entry[2]) end
    end
  end
  write('DEL', key)
end
carry_out()
return 1
