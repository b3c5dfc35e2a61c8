-- commit: acknowledge one delivery and publish all that its call caused.
--
-- If it does not run, the delivery is pending and its call will run again. Invariant: a delivery is pending, or its
-- effects are visible, and never both.
--
-- Returns OK; CLOSED (the request ended meanwhile: no effects); HELD (it is a dead letter: the effects are kept for
-- its replay); GONE (the broker no longer knows it); STALE (another attempt committed); DUP (this attempt did, and
-- its reply was lost); BADKEY (a queue's key holds something else: nothing happened); or the broker's epoch behind
-- OTHER_EPOCH: nothing happened.

local known = current_epoch(epoch_key)
if known ~= epoch then return OTHER_EPOCH .. known end
local by = step .. ':' .. attempt
local current, header, last = unpack(redis.call('HMGET', request, Field.STATE, Field.HEADER, Field.COMMITTED_BY))
for k = 1, #streams do
  local kind = redis.call('TYPE', streams[k]).ok
  if kind ~= 'stream' and kind ~= 'none' then return Reply.BADKEY end
end
local letter = current ~= State.OPEN and dead_letter_of(request)
local entry = letter and redis.call('XRANGE', stream, entry_id, entry_id)[1]
local is_mine = redis.call('XACK', stream, GROUP, entry_id) == 1
if is_mine then
  redis.call('XDEL', stream, entry_id)
elseif last == by then
  return Reply.DUP
end
if letter and redis.call('EXISTS', letter) == 0 then return current and Reply.CLOSED or Reply.GONE end
if not is_mine then return Reply.STALE end
if letter then
  if state == '' then
    apply(moves, streams, letter, redis.call('HGET', letter, Field.HEADER), keep_call)
  elseif entry then
    keep_if_dead(request, stream, entry[2])
  end
  return Reply.HELD
end
if state ~= '' then
  if state ~= State.DONE then remove_calls(request) end
  finish(request, request_id, state, payload, by)
else
  local notes = { Field.COMMITTED_BY, by }
  apply(moves, streams, request, header, enqueue, notes)
  redis.call('HSET', request, unpack(notes))
end
return Reply.OK
