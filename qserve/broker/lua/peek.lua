-- peek: return which calls of a deployment run, wait for a replica, and are delayed, without their values.
--
-- It writes nothing. If it does not run, nothing has changed.
--
-- Entries are read one by one, and no more of them once they have had PEEK_BYTES together: the values of a call may be
-- long, and nothing else runs in the broker meanwhile.
--
-- Returns a list of { header, stream, step, try, how, since, consumer }. `how` is RUNS (`consumer` has it), WAITS
-- (both since the call was put on the queue), RETRIES (it failed, and comes back at `since`), or AWAITS (it takes the
-- result of another request).

local found, room = {}, PEEK_BYTES

local function add(stream, fields, how, since, consumer)
  for _, value in ipairs(fields) do room = room - #(value .. '') end
  found[#found + 1] = shown_call(stream, fields, how, since, consumer)
end

for _, stream in ipairs(streams_of(queue)) do
  local pending = redis.pcall('XPENDING', stream, GROUP, '-', '+', limit)
  for _, delivery in ipairs(pending.err and empty or pending) do
    local entry = room > 0 and redis.call('XRANGE', stream, delivery[1], delivery[1])[1]
    if entry then add(stream, entry[2], RUNS, sent_ms(entry[1]), delivery[2]) end
  end
  local last = last_delivered(stream)
  for _ = 1, limit do
    local entry = room > 0 and redis.call('XRANGE', stream, '(' .. last, '+', 'COUNT', 1)[1]
    if not entry then break end
    last = entry[1]
    add(stream, entry[2], WAITS, sent_ms(last))
  end
end
local delayed = delayed_of(queue)
for k = 0, kind_of(delayed) == 'zset' and limit - 1 or -1 do
  local member, due = unpack(room > 0 and redis.call('ZRANGE', delayed, k, k, 'WITHSCORES') or empty)
  if not member then break end
  local request, fields = read_member(member)
  if request and is_open(request) then
    if is_call(fields) then
      add(queue, fields, RETRIES, due)
    else -- a step that waits for the result of another request
      local step = fields[1] or ''
      add(queue, { CallField.HEADER, hget(request, Field.HEADER) or '', CallField.STEP, step }, AWAITS, due)
    end
  end
end
return found
