-- Calls that a dead letter keeps for its replay. A dead letter is a hash under its request's id. It holds what the
-- request held (the joins that other branches have filled, the header), the fields of `Field` that say why it is one, and
--   !1, !2 ...   its calls, each a cmsgpack of { stream, fields }; the first one failed
-- The branches of its request that still ran, or end later, add what they would have started.

local function keep_call(letter, stream, step, fields)
  local number = count_in(letter, Field.CALLS) + 1
  local kept = with(fields, { [CallField.DEATHS] = false, [CallField.TRIES] = false })
  hset(letter, Field.CALLS, number)
  hset(letter, KEPT_CALL .. number, cmsgpack.pack({ stream, kept }))
  hset(letter, PLACE .. step, '')
end
