-- How a call becomes a dead letter. Ids of dead letters by their time are in one zset.

-- an id for a call that does not say whose it is
local function made_up_id(stream, entry)
  return string.sub(redis.sha1hex(stream .. entry), 1, REQUEST_ID_CHARS)
end

-- how many bytes more dead letters hold than they may
local function excess_bytes(index)
  local sizes = letter_bytes_of(index)
  local bytes = may_be(sizes, 'hash') and count_in(sizes, ALL_LETTERS) or 0
  local room = bytes > 0 and share_of_memory(LETTERS_SHARE)
  return room and bytes - room or 0
end

-- drop what is too old, and the oldest of those that are too many or too large, now that there are `made` more; those
-- are not in the index yet, and stay
local function drop_oldest(index, made)
  if made == 0 then return end
  local too_old = redis.call('ZRANGEBYSCORE', index, '-inf', now_ms() - DEAD_LETTER_TTL_MS)
  local over = math.max(#too_old, redis.call('ZCARD', index) + made - DEAD_LETTERS_KEPT)
  local excess, count = excess_bytes(index), 0
  if over == 0 and excess <= 0 then return end
  for _, id in ipairs(redis.call('ZRANGE', index, 0, excess > 0 and -1 or over - 1)) do
    if count >= over and excess <= 0 then break end
    local letter = dead_letter_of(request_of(index, id))
    hashes[letter] = nil
    excess = excess - uncount_bytes(letter)
    payloads.release(letter)
    count = count + 1
    write('DEL', letter)
    write('ZREM', index, id)
  end
  if count <= #too_old then return end
  local dropped = index .. ':' .. DROPPED
  write('INCRBY', dropped, count - #too_old)
  write('PEXPIRE', dropped, DEAD_LETTER_TTL_MS)
end

-- make a call that was taken off its queue a dead letter, and fail its request
--   is_known   false for a call that does not say whose it is: it is kept although there is no such request
-- A request that has ended meanwhile needs no dead letter: no caller waits for it.
-- Returns how many dead letters there are more.
local function make_dead_letter(request, id, stream, fields, why, failure, history, is_known)
  local letter, index, now = dead_letter_of(request), dead_letters_of(request), now_ms()
  local step = by_name(fields)[CallField.STEP] or ''
  local state = hget(request, Field.STATE)
  if exists(letter) then
    keep_call(letter, stream, step, fields)
    return 0
  end
  if state ~= State.OPEN and (state or is_known) then return 0 end
  check(index, 'zset')
  if state then
    write('COPY', request, letter)
    local values = hget(request, Field.VALUES)
    payloads.count_all(letter, values, 1, DEAD_LETTER_TTL_MS)
    local bytes = #failure + payloads.bytes(letter, values)
    for _, value in ipairs(redis.call('HVALS', request)) do bytes = bytes + #value end
    count_bytes(letter, bytes)
    for field, value in pairs(hash_of(request)) do hset(letter, field, value) end
    -- the waiters are notified now; after a replay, one asks by the id
    local own = {
      Field.WAITERS, Field.SENT, Field.TAKEN, Field.ITEMS, Field.COMMITTED_BY, Field.QUEUE, Field.PROGRESS, Field.TRACED }
    for _, name in ipairs(own) do
      hdel(letter, name)
    end
    hset(letter, Field.MAILBOX, '')
  end
  hset(letter, Field.WHY, why)
  hset(letter, Field.AT, now)
  hset(letter, Field.FAILURE, failure)
  hset(letter, Field.HISTORY, history)
  hset(letter, Field.CALLS, 0)
  keep_call(letter, stream, step, with(fields, { [CallField.HISTORY] = history }))
  lives[letter] = DEAD_LETTER_TTL_MS
  write('ZADD', index, now, id)
  write('PEXPIRE', index, DEAD_LETTER_TTL_MS)
  if state then finish(request, id, State.FAILED, failure) end
  return 1
end
