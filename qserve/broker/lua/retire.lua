-- retire: remove the queues of a version, and the zsets beside them, once nothing of it is in flight.
--
-- If it does not run, the queues are there, and supervisors try again.
--
-- A delivery stays in its stream until its commit, which forwards in the same function call: no request of this version
-- is open when all streams are empty and nothing waits beside them. With `force`, what is left fails.
--
-- Returns 1 when the queues are gone, else 0.

local function is_zset(key)
  return redis.call('TYPE', key).ok == 'zset'
end

-- whether a queue, or the zset beside it, holds something of an open request
local function is_needed(key)
  if not is_zset(key) then return redis.call('XLEN', key) > 0 end
  for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do
    if is_open(cmsgpack.unpack(member)[1]) then return true end
  end
  return false
end

-- fail the request of a call whose version is gone; a dead letter keeps the call for its replay
local function abandon(request, stream, fields)
  if is_open(request) then
    finish(request, string.match(request, '[^:]*$'), State.FAILED, failure)
  elseif is_call(fields) then
    keep_if_dead(request, stream, fields)
  end
end

for _, key in ipairs(queues) do
  if not force and is_needed(key) then return 0 end
end
for _, key in ipairs(queues) do
  if is_zset(key) then
    for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do
      local fields = cmsgpack.unpack(member)
      abandon(table.remove(fields, 1), queue_of(key), fields)
    end
  else
    for _, entry in ipairs(redis.call('XRANGE', key, '-', '+')) do
      local id = request_id_of(by_name(entry[2])[CallField.HEADER])
      if id then abandon(request_prefix .. id, key, entry[2]) end
    end
  end
  redis.call('DEL', key)
end
return 1
