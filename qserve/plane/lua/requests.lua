-- The functions that move requests on. Each runs as one atomic act: either all of it happened, or nothing.
--
-- Lua does not roll back: whatever may fail is checked before the first write. `allow-oom` lets accepted
-- work drain when the broker's memory is full; `submit` goes without it, so new work is refused instead.
-- @ stands for a digest of this text: two versions live side by side during a rolling update.
--
-- A request is a hash:
--   st    'o' open, 'd' done, 'f' failed, 'c' cancelled, 'x' expired
--   h     header bytes that each of its calls carries      to    mailbox of the submitter
--   res   result (once not open)                           keep  milliseconds that the result is kept
--   w     number of further waiters, w1, w2 ... each one   by    step:attempt of the last commit
--   <step>.<slot>  values of a join                        <step>.n  how many slots of it are filled
--   as, ai         stream and id of its newest entry
--   sent, taken    items of a streamed result that were sent, and that its reader has taken
--
-- Moves (in ARGV from `i` on): count, then for each
--   'S', key index, step, n, value * n               start a step whose values are all here
--   'F', key index, step, needs, n, (slot, value) * n   fill slots of a join; start it when complete
local GROUP = 'replicas'
local MAILBOX_TTL = 120000

local function add(request, stream, header, step, deaths, values)
  local entry = { 'XADD', stream, '*', 'h', header, 's', step }
  if deaths > 0 then entry[#entry + 1] = 'x'; entry[#entry + 1] = deaths end
  for slot, value in ipairs(values) do
    entry[#entry + 1] = slot - 1
    entry[#entry + 1] = value
  end
  -- where its newest entry lies: `close` takes it off the queue
  redis.call('HSET', request, 'as', stream, 'ai', redis.call(unpack(entry)))
end

local function fill(request, stream, header, step, needs, slots)
  local filled = 0
  for _, pair in ipairs(slots) do
    filled = filled + redis.call('HSETNX', request, step .. '.' .. pair[1], pair[2])
  end
  if filled == 0 or redis.call('HINCRBY', request, step .. '.n', filled) ~= needs then return end
  local fields = {}
  for slot = 0, needs - 1 do fields[#fields + 1] = step .. '.' .. slot end
  add(request, stream, header, step, 0, redis.call('HMGET', request, unpack(fields)))
  redis.call('HDEL', request, unpack(fields))
end

local function apply(keys, argv, i, request, header)
  local count = tonumber(argv[i])
  i = i + 1
  for _ = 1, count do
    local kind, stream, step = argv[i], keys[tonumber(argv[i + 1])], argv[i + 2]
    if kind == 'S' then
      local values = {}
      for k = 1, tonumber(argv[i + 3]) do values[k] = argv[i + 3 + k] end
      add(request, stream, header, step, 0, values)
      i = i + 4 + #values
    else
      local slots, n = {}, tonumber(argv[i + 4])
      for k = 1, n do slots[k] = { argv[i + 3 + 2 * k], argv[i + 4 + 2 * k] } end
      fill(request, stream, header, step, tonumber(argv[i + 3]), slots)
      i = i + 5 + 2 * n
    end
  end
  return i
end

local function deliver(mailbox, request_id, state, payload)
  redis.call('RPUSH', mailbox, request_id .. state .. payload)
  redis.call('PEXPIRE', mailbox, MAILBOX_TTL)
end

local finish

-- one who waits for a request: a mailbox, or a call that takes the result as an argument
local function tell(waiter, request_id, state, payload)
  local w = cmsgpack.unpack(waiter)
  if w.mailbox then return deliver(w.mailbox, request_id, state, payload) end
  if redis.call('HGET', w.request, 'st') ~= 'o' then return end
  if state == 'd' then
    fill(w.request, w.stream, w.header, w.step, w.needs, { { w.slot, payload } })
  else
    finish(w.request, w.request_id, state, payload)
  end
end

finish = function(request, request_id, state, payload, by)
  local mailbox, more, keep = unpack(redis.call('HMGET', request, 'to', 'w', 'keep'))
  local waiters = {}
  for k = 1, tonumber(more or 0) do waiters[k] = redis.call('HGET', request, 'w' .. k) end
  redis.call('DEL', request)
  if tonumber(keep) > 0 then
    redis.call('HSET', request, 'st', state, 'res', payload, 'by', by or '')
    redis.call('PEXPIRE', request, keep)
  end
  if mailbox ~= '' then deliver(mailbox, request_id, state, payload) end
  for _, waiter in ipairs(waiters) do tell(waiter, request_id, state, payload) end
end
