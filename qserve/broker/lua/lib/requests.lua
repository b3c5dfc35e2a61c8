-- Requests. Each is a hash. Its fields are `Field` in qserve/wire/outcome.py, and
--   <step>.<slot>  values of a join                        <step>.n  how many slots of it are filled
--   e:<step>       stream and id of the entry of a step: no other one may end it. POSTPONED while the call
--                  waits for its next try, and '' once it has ended
-- A waiter is a cmsgpack: { mailbox }, { webhook } (the key of one), or { request, request_id, header, stream, step,
-- needs, slot } of a call that takes the result as an argument.

-- every broker gets an epoch when it is first used: another one than was read before means that data was lost
local function current_epoch(key)
  return redis.call('GET', key) or ''
end

local function is_open(request)
  return hget(request, Field.STATE) == State.OPEN
end

local function add_waiter(request, waiter)
  local number = count_in(request, Field.WAITERS) + 1
  hset(request, Field.WAITERS, number)
  hset(request, Field.WAITERS .. number, waiter)
end

-- the waiters of a request, as they were packed
local function waiters_of(request)
  local found = {}
  for k = 1, count_in(request, Field.WAITERS) do
    found[k] = hget(request, Field.WAITERS .. k)
    if not found[k] then return found end
  end
  return found
end

-- what a waiter says; nil for bytes that are not one, or when a key that it names was overwritten: its own request
-- is lost then, and must not keep the request that it waits for from ending
local function read_waiter(packed)
  local is_read, w = pcall(cmsgpack.unpack, packed)
  if not is_read or type(w) ~= 'table' then return nil end
  if type(w.mailbox) == 'string' then return w end
  if type(w.webhook) == 'string' then
    return may_be(w.webhook, 'hash') and may_be(webhooks_of(w.webhook), 'zset') and w or nil
  end
  for _, name in ipairs({ 'request', 'request_id', 'header', 'stream', 'step' }) do
    if type(w[name]) ~= 'string' then return nil end
  end
  if type(w.needs) ~= 'number' or w.needs > INPUTS_LIMIT or type(w.slot) ~= 'number' then return nil end
  local is_whole = may_be(w.request, 'hash') and may_be(w.stream, 'stream') and may_be(delayed_of(w.stream), 'zset')
  return is_whole and w or nil
end

-- the end of a request as the end of another one that waited for it, whose header says so
local function inherited(header, awaited_id, payload)
  local is_inherited = string.sub(payload, 1, #INHERITED) == INHERITED
  local depth = is_inherited and (string.byte(payload, #INHERITED + 1) or 0) + 1 or 1
  if depth > INHERITED_LIMIT then return ARGUMENT_FAILED end
  return INHERITED .. string.char(depth) .. string.format('%08d', #header) .. header .. awaited_id .. payload
end

-- count the end of a request that was not ended by the commit of a replica, which counts those
local function count_end(request, state)
  local app = read_header(hget(request, Field.HEADER) or '')[APP_AT]
  if type(app) ~= 'string' then return end
  write('HINCRBY', ends_of(request), state .. app, 1)
  write('PEXPIRE', ends_of(request), ENDS_TTL_MS)
end

local finish

local function notify(waiter, request_id, state, payload, uses)
  local w = read_waiter(waiter)
  if not w then return end
  if w.mailbox then return deliver(w.mailbox, request_id, state, payload) end
  if w.webhook then return end_webhook(w.webhook, request_id, state, uses == empty and payload or '') end
  local slots = { { w.slot, payload } }
  if not is_open(w.request) then
    local letter = dead_letter_of(w.request)
    -- a replay goes on with it: this result is not sent a second time
    if state == State.DONE and may_be(letter, 'hash') and exists(letter) then
      fill(letter, w.stream, hget(letter, Field.HEADER), w.step, w.needs, slots, keep_call)
      payloads.change(letter, uses)
    end
  elseif not is_stream(w.stream) then -- only a replay waits for a queue that may be gone
    finish(w.request, w.request_id, State.FAILED, DELETED)
  elseif state == State.DONE then
    payloads.change(w.request, uses)
    if fill(w.request, w.stream, w.header, w.step, w.needs, slots, enqueue) then
      forget_waiting(w.request, w.stream, w.step)
    end
  else
    local ended = inherited(w.header, request_id, payload)
    remove_calls(w.request, w.request_id, state, ended)
    finish(w.request, w.request_id, state, ended)
  end
end

-- end a request: its result is kept for as long as was asked for, and its waiters are notified
--   uses   has the stored value of its result, which is kept for a while in any case: its reader has yet to fetch it
finish = function(request, request_id, state, payload, by, event, uses)
  local mailbox, keep, asked, left, more, events, values, items = unpack(hmget(request, {
    Field.MAILBOX, Field.KEEP, Field.FINGERPRINT, Field.LEFT, Field.WAITERS, Field.EVENTS, Field.VALUES, Field.ITEMS,
  }))
  uses = uses or empty
  local waiters = more and waiters_of(request) or empty
  if events then keep_trace(request, state, payload, event or '') end
  if not by then count_end(request, state) end
  if values then payloads.count_all(request, values, -1) end
  if items and (state == State.CANCELLED or state == State.EXPIRED) then payloads.drop_items(request, items) end
  renew(request)
  keep = tonumber(keep or 0) or 0
  if uses ~= empty and keep <= 0 and (keep == 0 or more) then keep = MAILBOX_TTL_MS end
  if keep > 0 then
    local stored = left and uses ~= empty and payloads.bytes(request, cmsgpack.pack(uses)) or 0
    local is_kept = not left or leave(request, #payload + stored, keep)
    hset(request, Field.STATE, is_kept and state or State.FAILED)
    hset(request, Field.RESULT, is_kept and payload or NOT_KEPT)
    hset(request, Field.COMMITTED_BY, by or '')
    if asked then hset(request, Field.FINGERPRINT, asked) end
    lives[request] = keep
    payloads.change(request, uses, is_kept and keep or math.min(keep, MAILBOX_TTL_MS))
  else
    payloads.drop(request, uses)
  end
  if events then write('PEXPIRE', events_of(request), math.max(keep, EVENTS_TTL_MS)) end
  if mailbox and mailbox ~= '' then deliver(mailbox, request_id, state, payload) end
  for _, waiter in ipairs(waiters) do notify(waiter, request_id, state, payload, uses) end
end

-- what the reader of a mailbox may know of a request
-- Returns { state, result }, of an open one { state, '', header }; { '', '' } when the request is not known, and
-- { ANNOUNCED, length } for a long result.
local function look_at(request, mailbox)
  local state, result, header = unpack(hmget(request, { Field.STATE, Field.RESULT, Field.HEADER }))
  if state == State.OPEN then return { state, '', header } end
  if result and is_announced(mailbox, result) then return { ANNOUNCED, #result .. '' } end
  if state == '' then state = '?' end -- it was overwritten; '' is for a request that is not known
  return { state or '', result or '' }
end

-- do the same, and have the mailbox notified when an open request has ended, once, however often it asks
local function follow(request, mailbox)
  local found = look_at(request, mailbox)
  if found[1] ~= State.OPEN then return found end
  if mailbox == '' or mailbox == hget(request, Field.MAILBOX) then return found end
  local waiter = cmsgpack.pack({ mailbox = mailbox })
  for _, known in ipairs(waiters_of(request)) do
    if known == waiter then return found end
  end
  add_waiter(request, waiter)
  return found
end
