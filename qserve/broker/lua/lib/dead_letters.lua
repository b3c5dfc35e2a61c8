-- How a call becomes a dead letter. Ids of dead letters by their time are in one zset.

-- an id for a call that does not say whose it is
local function made_up_id(stream, entry)
  return string.sub(redis.sha1hex(stream .. entry), 1, REQUEST_ID_CHARS)
end

local function drop_oldest(index, request, now)
  redis.call('ZREMRANGEBYSCORE', index, '-inf', now - DEAD_LETTER_TTL_MS)
  local over = redis.call('ZCARD', index) - DEAD_LETTERS_KEPT
  if over <= 0 then return end
  for _, id in ipairs(redis.call('ZRANGE', index, 0, over - 1)) do
    redis.call('DEL', dead_letter_of(request_of(request, id)))
    redis.call('ZREM', index, id)
  end
  local dropped = index .. ':' .. DROPPED
  redis.call('INCRBY', dropped, over)
  redis.call('PEXPIRE', dropped, DEAD_LETTER_TTL_MS)
end

-- make a call that was taken off its queue a dead letter, and fail its request.
--   is_known   false for a call that does not say whose it is: it is kept although there is no such request
-- A request that has ended meanwhile needs no dead letter: nobody waits for it.
local function make_dead_letter(request, id, stream, fields, why, failure, history, is_known)
  if keep_if_dead(request, stream, fields) then return end
  local state = redis.call('HGET', request, Field.STATE)
  if state ~= State.OPEN and (state or is_known) then return end
  local letter, index, now = dead_letter_of(request), dead_letters_of(request), now_ms()
  if state then
    redis.call('COPY', request, letter)
    -- the waiters are notified now; after a replay, one asks by the id
    redis.call('HDEL', letter, Field.WAITERS, Field.SENT, Field.TAKEN, Field.COMMITTED_BY)
    redis.call('HSET', letter, Field.MAILBOX, '')
  end
  redis.call('HSET', letter, Field.WHY, why, Field.AT, now, Field.FAILURE, failure, Field.HISTORY, history)
  local kept = with(fields, { [CallField.DEATHS] = false, [CallField.TRIES] = false, [CallField.HISTORY] = history })
  keep_call(letter, stream, '', kept)
  redis.call('PEXPIRE', letter, DEAD_LETTER_TTL_MS)
  redis.call('ZADD', index, now, id)
  redis.call('PEXPIRE', index, DEAD_LETTER_TTL_MS)
  drop_oldest(index, request, now)
  if state then finish(request, id, State.FAILED, failure) end
end
