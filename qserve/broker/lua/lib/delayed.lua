-- What a deployment's open requests have beside its queue is in one zset, each member a cmsgpack:
--   { request, name, value ... }   a call that waits for its next try, until the score
--   { request, step }              a step that waits for another request's result; at the score `wake` checks
--                                  whether its request is still open

local function is_call(fields)
  return #fields > 1
end

-- nothing may lie on the queue of a step until the result that it waits for comes, and `retire` must not remove it
local function note_waiting(request, stream, step, ttl_ms)
  local delayed = delayed_of(stream)
  redis.call('ZADD', delayed, now_ms() + RECHECK_MS, cmsgpack.pack({ request, step }))
  redis.call('PEXPIRE', delayed, math.max(redis.call('PTTL', delayed), ttl_ms))
end

local function forget_waiting(request, stream, step)
  redis.call('ZREM', delayed_of(stream), cmsgpack.pack({ request, step }))
end
