-- The functions that move requests on. Each runs as one atomic act: either all of it happened, or nothing.
--
-- Lua does not roll back: whatever may fail is checked before the first write. `allow-oom` lets accepted
-- work drain when the broker's memory is full; `submit` goes without it, so new work is refused instead.
-- @ stands for a digest of this text: two versions live side by side during a rolling update.
--
-- A request is a hash:
--   st    'o' open, 'd' done, 'f' failed, 'c' cancelled, 'x' expired
--   h     header that each of its calls carries            to    mailbox of the submitter
--   res   result (once not open)                           keep  milliseconds that the result is kept
--   w     number of further waiters, w1, w2 ... each one   by    step:attempt of the last commit
--   <step>.<slot>  values of a join                        <step>.n  how many slots of it are filled
--   e:<step>       stream and id of the last entry that stood for a step; it may be gone
--   sent, taken    items of a streamed result that were sent, and that its reader has taken
--   fp    fingerprint of what was asked, where its answer may be asked for by anybody who has the id
--
-- A call is an entry of a stream:
--   h     header, which begins with the request's id        s     step
--   0, 1 ...       values of its slots
--   x     deaths of its replica                            t     tries that user code failed
--   y     what happened to it: a cmsgpack list of { Unix ms, replica, what }
--
-- Moves (in ARGV from `i` on): count, then for each
--   'S', key index, step, n, value * n               start a step whose values are all here
--   'F', key index, step, needs, n, (slot, value) * n   fill slots of a join; start it when complete
local GROUP = 'replicas'
local MAILBOX_TTL, MAILBOX_READ = 120000, 128
local DELETED = '\0app_deleted'
local ID_CHARS = 32
local HISTORY_LINES = 20
local MAX_NOTES = 1000

local function now_ms()
  local now = redis.call('TIME')
  return now[1] * 1000 + math.floor(now[2] / 1000)
end

-- whether data was lost since `expected` was read: every broker gets an epoch of its own when it is first used
local function current_epoch(key)
  return redis.call('GET', key) or ''
end

local function is_stream(key)
  return redis.call('TYPE', key).ok == 'stream'
end

-- the request's id at the head of a header; nil where that is none
local function id_of(header)
  local id = string.sub(header or '', 1, ID_CHARS)
  return #id == ID_CHARS and string.match(id, '^%x+$') and id or nil
end

-- the fields of an entry by name
local function named(fields)
  local found = {}
  for k = 1, #fields, 2 do found[fields[k]] = fields[k + 1] end
  return found
end

-- the fields of an entry in which those in `changed` have other values (false: none)
local function with(fields, changed)
  local made = {}
  for k = 1, #fields, 2 do
    if changed[fields[k]] == nil then
      made[#made + 1] = fields[k]
      made[#made + 1] = fields[k + 1]
    end
  end
  for name, value in pairs(changed) do
    if value then
      made[#made + 1] = name
      made[#made + 1] = value
    end
  end
  return made
end

-- what happened to a call, with one line more; bytes that are no history begin a new one
local function history(fields, replica, what)
  local text = named(fields).y
  local is_read, lines = pcall(cmsgpack.unpack, text or cmsgpack.pack({}))
  if not is_read or type(lines) ~= 'table' then lines = {} end
  lines[#lines + 1] = { now_ms(), replica, what }
  if #lines > HISTORY_LINES then table.remove(lines, 1) end
  return cmsgpack.pack(lines)
end

-- put a call on its queue; where its entry lies is kept, so that `close` can take it off again
--   notes   collects what the caller will write to the request in one command, which costs a third of three; nil: none
local function enqueue(request, stream, step, fields, notes)
  local place = stream .. ' ' .. redis.call('XADD', stream, '*', unpack(fields))
  if notes and #notes < MAX_NOTES then
    notes[#notes + 1] = 'e:' .. step
    notes[#notes + 1] = place
  else
    redis.call('HSET', request, 'e:' .. step, place)
  end
end

local function dead_of(request)
  return (string.gsub(request, '}:r:', '}:d:', 1))
end

-- keep a call with a dead letter
local function hold(dead, stream, step, fields)
  local number = redis.call('HINCRBY', dead, '!n', 1)
  redis.call('HSET', dead, '!' .. number, cmsgpack.pack({ stream, fields }))
end

-- `put` says what becomes of a call that may start: `enqueue` or `hold`
local function add(request, stream, header, step, values, put, notes)
  local fields = { 'h', header, 's', step }
  for slot, value in ipairs(values) do
    fields[#fields + 1] = slot - 1
    fields[#fields + 1] = value
  end
  put(request, stream, step, fields, notes)
end

-- what a deployment's open requests have beside its queue is in one zset, each member a cmsgpack:
--   { request, name, value ... }   a call that waits for its next try, until the score
--   { request, step }              a step that waits for another request's result; at the score `wake` looks
--                                  whether its request is still open
local LOOK_AGAIN = 60000

local function delayed_of(stream)
  return (string.gsub(string.gsub(stream, '@.*$', ''), '}:q:', '}:z:', 1))
end

local function is_call(fields)
  return #fields > 1
end

-- answers whether the step has started
local function fill(request, stream, header, step, needs, slots, put, notes)
  local filled = 0
  for _, pair in ipairs(slots) do
    filled = filled + redis.call('HSETNX', request, step .. '.' .. pair[1], pair[2])
  end
  if filled == 0 or redis.call('HINCRBY', request, step .. '.n', filled) ~= needs then return false end
  local fields = {}
  for slot = 0, needs - 1 do fields[#fields + 1] = step .. '.' .. slot end
  add(request, stream, header, step, redis.call('HMGET', request, unpack(fields)), put, notes)
  redis.call('HDEL', request, unpack(fields))
  return true
end

local function apply(keys, argv, i, request, header, put, notes)
  local count = tonumber(argv[i])
  i = i + 1
  for _ = 1, count do
    local kind, stream, step = argv[i], keys[tonumber(argv[i + 1])], argv[i + 2]
    if kind == 'S' then
      local values = {}
      for k = 1, tonumber(argv[i + 3]) do values[k] = argv[i + 3 + k] end
      add(request, stream, header, step, values, put, notes)
      i = i + 4 + #values
    else
      local slots, n = {}, tonumber(argv[i + 4])
      for k = 1, n do slots[k] = { argv[i + 3 + 2 * k], argv[i + 4 + 2 * k] } end
      fill(request, stream, header, step, tonumber(argv[i + 3]), slots, put, notes)
      i = i + 5 + 2 * n
    end
  end
end

local function deliver(mailbox, request_id, state, payload)
  -- the result is stored as well: a mailbox of another type must not undo the act that it is told of
  local length = redis.pcall('RPUSH', mailbox, request_id .. state .. payload)
  -- whoever reads takes this many at once, and so has emptied it: only a list that nobody reads grows beyond
  if length == 1 or type(length) == 'number' and length > MAILBOX_READ then
    redis.call('PEXPIRE', mailbox, MAILBOX_TTL)
  end
end

-- take every call of a request off its queue, and from the replica that runs it, which finds its request closed when
-- it commits: as long as it were pending there, it would stand for one call less that waits
local function unqueue(request)
  local fields = redis.call('HGETALL', request)
  for k = 1, #fields, 2 do
    if string.sub(fields[k], 1, 2) == 'e:' then
      local stream, entry = string.match(fields[k + 1], '^(.*) (.-)$')
      redis.pcall('XACK', stream, GROUP, entry)
      redis.pcall('XDEL', stream, entry)
    end
  end
end

local finish

-- one who waits for a request: a mailbox, or a call that takes the result as an argument
local function tell(waiter, request_id, state, payload)
  local w = cmsgpack.unpack(waiter)
  if w.mailbox then return deliver(w.mailbox, request_id, state, payload) end
  local slots = { { w.slot, payload } }
  if redis.call('HGET', w.request, 'st') ~= 'o' then
    local dead = dead_of(w.request)
    -- a replay goes on with it: nobody will tell of this result a second time
    if state == 'd' and redis.call('EXISTS', dead) == 1 then
      fill(dead, w.stream, redis.call('HGET', dead, 'h'), w.step, w.needs, slots, hold)
    end
  elseif not is_stream(w.stream) then -- only a replay waits for a queue that may be gone
    finish(w.request, w.request_id, 'f', DELETED)
  elseif state == 'd' then
    if fill(w.request, w.stream, w.header, w.step, w.needs, slots, enqueue) then
      redis.call('ZREM', delayed_of(w.stream), cmsgpack.pack({ w.request, w.step }))
    end
  else
    unqueue(w.request)
    finish(w.request, w.request_id, state, payload)
  end
end

finish = function(request, request_id, state, payload, by)
  local mailbox, more, keep, asked = unpack(redis.call('HMGET', request, 'to', 'w', 'keep', 'fp'))
  local waiters = {}
  for k = 1, tonumber(more or 0) do waiters[k] = redis.call('HGET', request, 'w' .. k) end
  redis.call('DEL', request)
  if tonumber(keep) > 0 then
    redis.call('HSET', request, 'st', state, 'res', payload, 'by', by or '')
    if asked then redis.call('HSET', request, 'fp', asked) end
    redis.call('PEXPIRE', request, keep)
  end
  if mailbox ~= '' then deliver(mailbox, request_id, state, payload) end
  for _, waiter in ipairs(waiters) do tell(waiter, request_id, state, payload) end
end

-- have a mailbox ('': none) told when an open request has ended, once, however often it asks
-- Returns {state, result}, of an open one {state, '', header}; {'', ''} when nothing is known of the request.
local function follow(request, mailbox)
  local state, result, owner, more, header = unpack(redis.call('HMGET', request, 'st', 'res', 'to', 'w', 'h'))
  if state == 'o' and mailbox ~= '' and mailbox ~= owner then
    local waiter = cmsgpack.pack({ mailbox = mailbox })
    for k = 1, tonumber(more or 0) do
      if redis.call('HGET', request, 'w' .. k) == waiter then return { state, '', header } end
    end
    redis.call('HSET', request, 'w' .. redis.call('HINCRBY', request, 'w', 1), waiter)
  end
  if state == 'o' then return { state, '', header } end
  return { state or '', result or '' }
end
