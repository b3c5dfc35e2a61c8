-- What happens to the calls of replicas and versions that are no more.

-- an entry of a queue that is no more, or of a replica that is no more, goes to `stream`
local function move(stream, fields, prefix)
  local call = named(fields)
  local id = id_of(call.h)
  if not id then
    redis.call('XADD', stream, '*', unpack(fields)) -- whoever reads it next finds out that it cannot be read
  elseif redis.call('HGET', prefix .. id, 'st') == 'o' then
    enqueue(prefix .. id, stream, call.s or '', fields)
  else
    held(prefix .. id, stream, fields) -- of a request that has ended nothing else is left to do
  end
end

-- reclaim: hand what a dead consumer held to the others, then remove the consumer.
-- KEYS  stream, where the calls go (the same stream, or the common one for a replica's own)
-- ARGV  consumer, deaths that make a dead letter, failure payload, request key prefix
-- A call is delivered again as a new entry that carries the number of its deaths; readers run such
-- calls alone, so only the call that kills is counted on. Returns the number of calls handed over.
local function reclaim(keys, argv)
  local stream, consumer, limit, prefix = keys[1], argv[1], tonumber(argv[2]), argv[4]
  local pending = redis.pcall('XPENDING', stream, GROUP, '-', '+', 1000, consumer)
  if pending.err then return 0 end
  for _, entry in ipairs(pending) do
    local found = redis.call('XRANGE', stream, entry[1], entry[1])[1]
    redis.call('XACK', stream, GROUP, entry[1])
    redis.call('XDEL', stream, entry[1])
    if found then
      local call = named(found[2])
      local deaths = (tonumber(call.x) or 0) + 1
      local log = history(found[2], consumer, 'its replica died (' .. deaths .. ')')
      if deaths < limit then
        move(keys[2], with(found[2], { x = deaths, y = log }), prefix)
      else
        local known = id_of(call.h)
        local id = known or made_up_id(stream, entry[1])
        bury_call(prefix .. id, id, keys[2], found[2], 'deaths', argv[3], log, known ~= nil)
      end
    end
  end
  if #pending < 1000 then redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, consumer) end
  return #pending
end

-- disband: what waits in the own stream of a replica that is gone goes to the common one.
-- KEYS  own stream, common stream, models hash   ARGV  consumer, request key prefix
-- What it had begun is handed over by `reclaim` before. Returns the number of calls moved.
local function disband(keys, argv)
  local mine = cmsgpack.pack({ argv[1], keys[1] })
  local all = redis.call('HGETALL', keys[3])
  for k = 1, #all, 2 do
    if all[k + 1] == mine or all[k] == 's:' .. argv[1] then redis.call('HDEL', keys[3], all[k]) end
  end
  local left = redis.call('XRANGE', keys[1], '-', '+')
  for _, found in ipairs(left) do move(keys[2], found[2], argv[2]) end
  redis.call('DEL', keys[1])
  return #left
end

-- fail the request of a call whose version is no more; a dead letter keeps the call for its replay
local function abandon(request, stream, fields, failure)
  if redis.call('HGET', request, 'st') == 'o' then
    finish(request, string.match(request, '[^:]*$'), 'f', failure)
  elseif is_call(fields) then
    held(request, stream, fields)
  end
end

local function is_zset(key)
  return redis.call('TYPE', key).ok == 'zset'
end

-- whether a queue, or the zset beside it, holds something of an open request
local function is_needed(key)
  if not is_zset(key) then return redis.call('XLEN', key) > 0 end
  for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do
    if redis.call('HGET', cmsgpack.unpack(member)[1], 'st') == 'o' then return true end
  end
  return false
end

-- retire: remove the queues of a version once nothing of it is under way.
-- KEYS  stream or delayed zset...   ARGV  1 to fail what is left, failure payload, request key prefix
-- A delivery stays in its stream until its commit, which forwards in the same act: no request of this version is
-- open when all streams are empty and nothing waits beside them. Returns 1 when the queues are gone, else 0.
local function retire(keys, argv)
  local force, failure, prefix = argv[1] == '1', argv[2], argv[3]
  for _, key in ipairs(keys) do
    if not force and is_needed(key) then return 0 end
  end
  for _, key in ipairs(keys) do
    if is_zset(key) then
      for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do
        local fields = cmsgpack.unpack(member)
        abandon(table.remove(fields, 1), string.gsub(key, '}:z:', '}:q:', 1), fields, failure)
      end
    else
      for _, found in ipairs(redis.call('XRANGE', key, '-', '+')) do
        local id = id_of(named(found[2]).h)
        if id then abandon(prefix .. id, key, found[2], failure) end
      end
    end
    redis.call('DEL', key)
  end
  return 1
end

redis.register_function{ function_name = 'qserve_reclaim_@', callback = reclaim, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'qserve_disband_@', callback = disband, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'qserve_retire_@', callback = retire, flags = { 'allow-oom' } }
