-- Which replica holds which model: a hash of each deployment, m:<model> to a cmsgpack of { consumer, stream } and
-- s:<consumer> to the replica's own stream.

-- remove what a replica has advertised
local function take_down(models, consumer, personal)
  local mine = cmsgpack.pack({ consumer, personal })
  local all = redis.call('HGETALL', models)
  for k = 1, #all, 2 do
    if all[k + 1] == mine or all[k] == 's:' .. consumer then hdel(models, all[k]) end
  end
end

-- the stream of a replica that holds a model and is free to take a call for it; nil when there is none
local function holder_of(stream, model_id, max_ongoing)
  local held = redis.call('HGET', models_of(stream), 'm:' .. model_id)
  local is_read, holder = pcall(cmsgpack.unpack, held or '')
  if not is_read or type(holder) ~= 'table' then return nil end
  local consumer, personal = holder[1], holder[2]
  if type(personal) ~= 'string' or not may_be(personal, 'stream') then return nil end
  local busy = redis.call('XLEN', personal)
  local pending = redis.pcall('XPENDING', stream, GROUP)
  for _, one in ipairs((not pending.err and pending[4]) or {}) do
    if one[1] == consumer then busy = busy + tonumber(one[2]) end
  end
  return busy < max_ongoing and personal or nil
end

-- the stream of a deployment, if it is there, and those of its replicas that hold models
local function streams_of(queue)
  local found = is_stream(queue) and { queue } or {}
  local held = kind_of(models_of(queue)) == 'hash' and redis.call('HGETALL', models_of(queue)) or empty
  for k = 1, #held, 2 do
    local name, stream = held[k], held[k + 1]
    local is_own = string.sub(name, 1, 2) == 's:' and common_of(stream) == queue
    if is_own and is_stream(stream) then found[#found + 1] = stream end
  end
  return found
end
