-- A request comes in.
-- submit: accept a request, or refuse it and leave everything as it was.
-- KEYS  request, stream..., (with a model) the models hash of the first stream's deployment
-- ARGV  request id, header, mailbox, life ms, keep ms, model or '', calls that a replica takes at once,
--       limit of each stream (-1: none), moves,
--       count of refs, (request key, cmsgpack of the waiter, key index, step, needs, slot) for each
-- Returns OK, DUP (accepted before), FULL, MOVED (the queues belong to a version that is no more), or LOST
-- (an argument's result is no longer known).
local function submit(keys, argv)
  local request, id, header = keys[1], argv[1], argv[2]
  local models = argv[6] ~= '' and table.remove(keys) or nil
  if redis.call('EXISTS', request) == 1 then return 'DUP' end
  if #keys > 1 and redis.call('EXISTS', unpack(keys, 2)) < #keys - 1 then return 'MOVED' end
  local i = 8
  for k = 2, #keys do
    local limit = tonumber(argv[i])
    if limit >= 0 then
      local pending = redis.pcall('XPENDING', keys[k], GROUP)
      local running = (not pending.err) and pending[1] or 0
      if redis.call('XLEN', keys[k]) - running >= limit then return 'FULL' end
    end
    i = i + 1
  end
  if models then keys[2] = holder_of(models, argv[6], keys[2], tonumber(argv[7])) or keys[2] end
  redis.call('HSET', request, 'st', 'o', 'h', header, 'to', argv[3], 'keep', argv[5])
  redis.call('PEXPIRE', request, argv[4])
  i = apply(keys, argv, i, request, header)
  for k = 1, tonumber(argv[i]) do
    local at = i + 1 + (k - 1) * 6
    local other = argv[at]
    local state, result = unpack(redis.call('HMGET', other, 'st', 'res'))
    if not state then
      redis.call('DEL', request)
      return 'LOST'
    elseif state == 'o' then
      redis.call('HSET', other, 'w' .. redis.call('HINCRBY', other, 'w', 1), argv[at + 1])
    elseif state == 'd' then
      local slots = { { argv[at + 5], result } }
      fill(request, keys[tonumber(argv[at + 2])], header, argv[at + 3], tonumber(argv[at + 4]), slots)
    else
      finish(request, id, state, result)
      return 'OK'
    end
  end
  return 'OK'
end

redis.register_function('qserve_submit_@', submit)
