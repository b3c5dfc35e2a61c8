-- A request comes in.
-- seconds after which a queue that is full is worth another try: by Little's law, what is at its head has waited as
-- long as all that wait take to be begun
local function patience(stream)
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  local last = '0-0'
  for _, group in ipairs(groups.err and {} or groups) do
    local told = named(group)
    if told.name == GROUP then last = told['last-delivered-id'] end
  end
  local oldest = redis.call('XRANGE', stream, '(' .. last, '+', 'COUNT', 1)[1]
  if not oldest then return 1 end
  local waited_ms = now_ms() - string.match(oldest[1], '%d+')
  return math.max(1, math.min(30, math.ceil(waited_ms / 1000)))
end

-- submit: accept a request, or refuse it and leave everything as it was.
-- KEYS  request, epoch, stream..., (with a model) the models hash of the first stream's deployment
-- ARGV  request id, epoch, header, mailbox, life ms, keep ms, model or '', calls that a replica takes at once,
--       fingerprint or '', limit of each stream (-1: none),
--       count of refs, (request key, cmsgpack of the waiter, key index, step, needs, slot) for each,
--       moves
-- Returns OK, DUP (accepted before), {FULL, seconds to wait}, MOVED (the queues belong to a version that is no more),
-- LOST (an argument's result is no longer known), or the broker's epoch behind 'EPOCH ' when that is another one.
-- With a fingerprint a request that was accepted before is followed: {state, result}, and the mailbox will be told;
-- MISMATCH when the earlier one asked for something else. Accepted once, whoever asks, and however often.
local FIRST_LIMIT, REF_PARTS = 10, 6

local function submit(keys, argv)
  local request, id, header = keys[1], argv[1], argv[3]
  local epoch = current_epoch(keys[2])
  if epoch ~= argv[2] then return 'EPOCH ' .. epoch end
  local models = argv[7] ~= '' and table.remove(keys) or nil
  if redis.call('EXISTS', request) == 1 then
    -- a write all the same: WAIT asks for the replicas' copies of what its connection has written
    redis.call('HSET', request, 'st', redis.call('HGET', request, 'st'))
    if argv[9] == '' then return 'DUP' end
    return redis.call('HGET', request, 'fp') == argv[9] and follow(request, argv[4]) or 'MISMATCH'
  end
  for k = 3, #keys do
    if not is_stream(keys[k]) then return 'MOVED' end
    local limit = tonumber(argv[FIRST_LIMIT + k - 3])
    if limit >= 0 then
      local pending = redis.pcall('XPENDING', keys[k], GROUP)
      local running = (not pending.err) and pending[1] or 0
      if redis.call('XLEN', keys[k]) - running >= limit then return { 'FULL', patience(keys[k]) } end
    end
  end
  local i = FIRST_LIMIT + #keys - 2
  local refs = {}
  for k = 1, tonumber(argv[i]) do
    local at = i + 1 + (k - 1) * REF_PARTS
    local state, result = unpack(redis.call('HMGET', argv[at], 'st', 'res'))
    if not state then return 'LOST' end
    refs[k] = { at = at, state = state, result = result }
  end
  if models then keys[3] = holder_of(models, argv[7], keys[3], tonumber(argv[8])) or keys[3] end
  local notes = { 'st', 'o', 'h', header, 'to', argv[4], 'keep', argv[6] }
  if argv[9] ~= '' then
    notes[#notes + 1] = 'fp'
    notes[#notes + 1] = argv[9]
  end
  apply(keys, argv, i + 1 + #refs * REF_PARTS, request, header, enqueue, notes)
  redis.call('HSET', request, unpack(notes))
  redis.call('PEXPIRE', request, argv[5])
  for _, ref in ipairs(refs) do
    local at = ref.at
    if ref.state == 'o' then
      redis.call('HSET', argv[at], 'w' .. redis.call('HINCRBY', argv[at], 'w', 1), argv[at + 1])
      -- until that result comes nothing may lie on the queue, which is needed all the same: `retire` looks here
      local delayed = delayed_of(keys[tonumber(argv[at + 2])])
      redis.call('ZADD', delayed, now_ms() + LOOK_AGAIN, cmsgpack.pack({ request, argv[at + 3] }))
      redis.call('PEXPIRE', delayed, math.max(redis.call('PTTL', delayed), tonumber(argv[5])))
    elseif ref.state == 'd' then
      local slots = { { argv[at + 5], ref.result } }
      fill(request, keys[tonumber(argv[at + 2])], header, argv[at + 3], tonumber(argv[at + 4]), slots, enqueue)
    else
      unqueue(request)
      finish(request, id, ref.state, ref.result)
      return 'OK'
    end
  end
  return 'OK'
end

redis.register_function('qserve_submit_@', submit)
