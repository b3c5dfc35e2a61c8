-- Calls that a dead letter keeps for its replay. A dead letter is a hash under its request's id. It holds what the
-- request held (the joins that other branches have filled, the header), the fields of `Field` that say why it is one, and
--   !1, !2 ...   its calls, each a cmsgpack of { stream, fields }; the first one failed
-- The branches of its request that still ran, or end later, add what they would have started.

local function keep_call(letter, stream, step, fields)
  local number = redis.call('HINCRBY', letter, Field.CALLS, 1)
  redis.call('HSET', letter, KEPT_CALL .. number, cmsgpack.pack({ stream, fields }))
end

-- keep a call of a request that has ended when that request is a dead letter; returns whether it was kept
local function keep_if_dead(request, stream, fields)
  local letter = dead_letter_of(request)
  if redis.call('EXISTS', letter) == 0 then return false end
  keep_call(letter, stream, '', with(fields, { [CallField.DEATHS] = false, [CallField.TRIES] = false }))
  return true
end
