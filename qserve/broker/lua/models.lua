-- Which replica holds which model, and where calls for it go.
-- the stream of a replica that holds a model and is free to take a call for it; nil when there is none
--   models  hash: m:<model> to a cmsgpack of {consumer, stream}, s:<consumer> to its stream
local function holder_of(models, model, stream, max_ongoing)
  local held = redis.call('HGET', models, 'm:' .. model)
  if not held then return nil end
  local consumer, personal = unpack(cmsgpack.unpack(held))
  local busy = redis.call('XLEN', personal)
  local pending = redis.pcall('XPENDING', stream, GROUP)
  for _, one in ipairs((not pending.err and pending[4]) or {}) do
    if one[1] == consumer then busy = busy + tonumber(one[2]) end
  end
  return busy < max_ongoing and personal or nil
end

-- advertise: say which models a replica holds, so that calls for them come to it while it is free.
-- KEYS  models hash, the replica's own stream   ARGV  consumer, life ms, model...
local function advertise(keys, argv)
  local mine = cmsgpack.pack({ argv[1], keys[2] })
  local all = redis.call('HGETALL', keys[1])
  for k = 1, #all, 2 do
    if all[k + 1] == mine then redis.call('HDEL', keys[1], all[k]) end
  end
  redis.call('HSET', keys[1], 's:' .. argv[1], keys[2])
  for k = 3, #argv do redis.call('HSET', keys[1], 'm:' .. argv[k], mine) end
  redis.call('PEXPIRE', keys[1], argv[2])
  redis.call('PEXPIRE', keys[2], argv[2])
  return 'OK'
end

redis.register_function{ function_name = 'qserve_advertise_@', callback = advertise, flags = { 'allow-oom' } }
