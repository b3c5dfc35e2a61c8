-- commit: acknowledge one delivery and publish all that its call caused.
--
-- If it does not run, the delivery is pending and its call will run again. Invariant: a delivery is pending, or its
-- effects are visible, and never both.
--
-- `values` has the stored values of what starts, with their uses, and those that the call has used, -1 each; or, of a
-- request that ends, only that of its result.
--
-- Returns OK, or { OK, names of the stored values that nobody holds any more }; CLOSED (the request ended meanwhile:
-- no effects); HELD (it is a dead letter: the effects are kept for its replay); GONE (the broker no longer knows
-- it); STALE (another attempt committed); DUP (this attempt did, and its reply was lost); BADKEY (a queue's key
-- holds something else: nothing happened); or the broker's epoch behind OTHER_EPOCH: nothing happened.

local known = current_epoch(epoch_key)
if known ~= epoch then return OTHER_EPOCH .. known end
for k = 1, #streams do
  if not may_be(streams[k], 'stream') then return Reply.BADKEY end
end
local by, slot = step .. ':' .. attempt, PLACE .. step
local current, header, last, place = unpack(
  hmget(request, { Field.STATE, Field.HEADER, Field.COMMITTED_BY, slot })
)
local keeper = request
if current ~= State.OPEN then
  keeper = dead_letter_of(request)
  if exists(keeper) then
    header, place = unpack(hmget(keeper, { Field.HEADER, slot }))
  else
    keeper, place = nil, nil
  end
end
local is_mine = place == stream .. ' ' .. entry_id
if not is_mine and last == by then return Reply.DUP end

local reply = Reply.OK
remove_entry(stream, entry_id)
if not keeper then
  reply = current and Reply.CLOSED or Reply.GONE
elseif not is_mine then
  reply = Reply.STALE
elseif keeper ~= request then
  reply = Reply.HELD
  hset(keeper, slot, '')
  local entry = state ~= '' and redis.call('XRANGE', stream, entry_id, entry_id)[1]
  if state == '' then
    apply(moves, streams, keeper, header, keep_call)
    payloads.change(keeper, values)
  elseif entry then
    keep_call(keeper, stream, step, entry[2])
  end
elseif state == '' then
  hset(request, Field.COMMITTED_BY, by)
  hset(request, slot, '')
  apply(moves, streams, request, header, enqueue)
  payloads.change(request, values)
  if event ~= '' then log_event(request, event) end
else
  if state ~= State.DONE then
    hdel(request, slot)
    remove_calls(request, request_id, state, payload)
  end
  if event ~= '' then log_event(request, event) end
  finish(request, request_id, state, payload, by, event, values)
end
reply = payloads.reply(reply)
carry_out()
return reply
