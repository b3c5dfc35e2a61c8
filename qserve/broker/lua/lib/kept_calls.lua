-- Calls that a dead letter keeps for its replay. A dead letter is a hash under its request's id. It holds what the
-- request held (the joins that other branches have filled, the header), and
--   !why     'deaths', 'retries' or 'unreadable'           !at   Unix ms
--   !failure what its caller was told                      !y    history of the call that failed
--   !n       number of its calls, !1, !2 ... each a cmsgpack of { stream, fields }; the first one failed
-- The branches of its request that still ran, or end later, add what they would have started.

local function keep_call(letter, stream, step, fields)
  local number = redis.call('HINCRBY', letter, '!n', 1)
  redis.call('HSET', letter, '!' .. number, cmsgpack.pack({ stream, fields }))
end

-- keep a call of a request that has ended when that request is a dead letter; returns whether it was kept
local function keep_if_dead(request, stream, fields)
  local letter = dead_letter_of(request)
  if redis.call('EXISTS', letter) == 0 then return false end
  keep_call(letter, stream, '', with(fields, { x = false, t = false }))
  return true
end
