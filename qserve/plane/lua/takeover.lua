-- What happens to the calls of replicas and versions that are no more.
-- reclaim: hand what a dead consumer held to the others, then remove the consumer.
-- KEYS  stream, where the calls go (the same stream, or the common one for a replica's own)
-- ARGV  consumer, deaths that make a dead letter, failure payload, request key prefix
-- A call is delivered again as a new entry that carries the number of its deaths; readers run such
-- calls alone, so only the call that kills is counted on. Returns the number of calls handed over.
local function reclaim(keys, argv)
  local stream, consumer, limit = keys[1], argv[1], tonumber(argv[2])
  local pending = redis.pcall('XPENDING', stream, GROUP, '-', '+', 1000, consumer)
  if pending.err then return 0 end
  for _, held in ipairs(pending) do
    local found = redis.call('XRANGE', stream, held[1], held[1])[1]
    redis.call('XACK', stream, GROUP, held[1])
    redis.call('XDEL', stream, held[1])
    if found then
      local fields, deaths = { 'XADD', keys[2], '*' }, 1
      local header
      for k = 1, #found[2], 2 do
        local name, value = found[2][k], found[2][k + 1]
        if name == 'x' then deaths = tonumber(value) + 1
        else fields[#fields + 1] = name; fields[#fields + 1] = value end
        if name == 'h' then header = value end
      end
      fields[#fields + 1] = 'x'
      fields[#fields + 1] = deaths
      local id = header and cmsgpack.unpack(header)[1]
      local request = argv[4] .. (id or '')
      if deaths < limit or not header then
        local entry = redis.call(unpack(fields))
        if redis.call('HGET', request, 'st') == 'o' then redis.call('HSET', request, 'as', keys[2], 'ai', entry) end
      elseif redis.call('HGET', request, 'st') == 'o' then
        finish(request, id, 'f', argv[3])
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
  for _, found in ipairs(left) do
    local fields, header = { 'XADD', keys[2], '*' }, nil
    for k = 1, #found[2], 2 do
      fields[#fields + 1] = found[2][k]
      fields[#fields + 1] = found[2][k + 1]
      if found[2][k] == 'h' then header = found[2][k + 1] end
    end
    local entry = redis.call(unpack(fields))
    local request = argv[2] .. (header and cmsgpack.unpack(header)[1] or '')
    if redis.call('HGET', request, 'st') == 'o' then redis.call('HSET', request, 'as', keys[2], 'ai', entry) end
  end
  redis.call('DEL', keys[1])
  return #left
end

-- retire: remove the queues of a version once nothing of it is under way.
-- KEYS  stream or delayed zset...   ARGV  1 to fail what is left, failure payload, request key prefix
-- A delivery stays in its stream until its commit, which forwards in the same act: all streams empty means that
-- no request of this version is open. Returns 1 when the queues are gone, else 0.
local function retire(keys, argv)
  local streams = {}
  for _, key in ipairs(keys) do
    if redis.call('TYPE', key).ok == 'zset' then
      if argv[1] ~= '1' then return 0 end
      for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do
        local request = cmsgpack.unpack(member)[1]
        if redis.call('HGET', request, 'st') == 'o' then
          finish(request, string.sub(request, #argv[3] + 1), 'f', argv[2])
        end
      end
      redis.call('DEL', key)
    else
      streams[#streams + 1] = key
      if redis.call('XLEN', key) > 0 and argv[1] ~= '1' then return 0 end
    end
  end
  for _, stream in ipairs(streams) do
    for _, found in ipairs(redis.call('XRANGE', stream, '-', '+')) do
      for k = 1, #found[2], 2 do
        if found[2][k] == 'h' then
          local id = cmsgpack.unpack(found[2][k + 1])[1]
          local request = argv[3] .. id
          if redis.call('HGET', request, 'st') == 'o' then finish(request, id, 'f', argv[2]) end
        end
      end
    end
    redis.call('DEL', stream)
  end
  return 1
end

redis.register_function{ function_name = 'qserve_reclaim_@', callback = reclaim, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'qserve_disband_@', callback = disband, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'qserve_retire_@', callback = retire, flags = { 'allow-oom' } }
