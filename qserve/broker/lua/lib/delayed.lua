-- What a deployment's open requests have beside its queue is in one zset, each member a cmsgpack:
--   { request, name, value ... }   a call that waits for its next try, until the score
--   { request, step }              a step that waits for another request's result; at the score `wake` checks
--                                  whether its request is still open

local function is_call(fields)
  return #fields > 1
end

-- the request of a member and the rest of it; nil for bytes that are not one
local function read_member(member)
  local is_read, fields = pcall(cmsgpack.unpack, member)
  if not is_read or type(fields) ~= 'table' then return nil end
  for _, part in ipairs(fields) do
    if type(part) ~= 'string' and type(part) ~= 'number' then return nil end
  end
  local request = table.remove(fields, 1)
  return type(request) == 'string' and may_be(request, 'hash') and request or nil, fields
end

-- keep a zset as long as the longest-lived of what waits in it
local function delay(delayed, member, score, ttl_ms)
  check(delayed, 'zset')
  write('ZADD', delayed, score, member)
  write('PEXPIRE', delayed, math.max(redis.call('PTTL', delayed), ttl_ms))
end

-- nothing may lie on the queue of a step until the result that it waits for comes, and `retire` must not remove it
local function note_waiting(request, stream, step, ttl_ms)
  delay(delayed_of(stream), cmsgpack.pack({ request, step }), now_ms() + RECHECK_MS, ttl_ms)
end

local function forget_waiting(request, stream, step)
  write('ZREM', delayed_of(stream), cmsgpack.pack({ request, step }))
end
