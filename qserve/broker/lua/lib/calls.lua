-- Calls. Each is an entry of a stream: the fields of `CallField`, and 0, 1 ... with the values of its slots.

local function is_stream(key)
  return kind_of(key) == 'stream'
end

-- the request's id at the head of a header; nil where that is not one
local function request_id_of(header)
  local id = string.sub(header or '', 1, REQUEST_ID_CHARS)
  return #id == REQUEST_ID_CHARS and string.match(id, '^%x+$') and id or nil
end

-- the parts of a header. They are not verified here: the replica that runs the call checks the seal
local function read_header(header)
  local length = string.byte(header, REQUEST_ID_CHARS + 2) == 0 and UNSIGNED_BYTES or SIGNED_BYTES
  local is_read, parts = pcall(cmsgpack.unpack, string.sub(header, REQUEST_ID_CHARS + length + 1))
  return is_read and type(parts) == 'table' and parts or empty
end

-- the fields of an entry by name
local function by_name(fields)
  local found = {}
  for k = 1, #fields, 2 do found[fields[k]] = fields[k + 1] end
  return found
end

-- the fields of an entry with those in `changed` replaced (false: removed)
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

-- the history of a call with one event more; bytes that are not a history begin a new one
local function history_of(fields, replica, what)
  local text = by_name(fields)[CallField.HISTORY]
  local is_read, events = pcall(cmsgpack.unpack, text or cmsgpack.pack({}))
  if not is_read or type(events) ~= 'table' then events = {} end
  events[#events + 1] = { now_ms(), replica, what }
  if #events > HISTORY_LINES then table.remove(events, 1) end
  return cmsgpack.pack(events)
end

local function sent_ms(entry_id)
  return string.match(entry_id, '^%d+')
end

-- a call as it is shown, without its values: see peek.lua
local function shown_call(stream, fields, how, since, consumer)
  local call = by_name(fields)
  local try = 1 + (tonumber(call[CallField.TRIES]) or 0) + (tonumber(call[CallField.DEATHS]) or 0)
  return {
    call[CallField.HEADER] or '', stream, call[CallField.STEP] or '', try .. '', how, since, consumer or '',
  }
end

-- put a call on a stream; the request notes its entry: no other entry may end the step
local function enqueue(request, stream, step, fields)
  hset(request, PLACE .. step, add_entry(stream, fields))
end

-- take a delivery that ends without a result off its queue and from the replica that holds it
-- Returns whether the replica held it, and its fields; nil when the entry itself is gone.
local function take_entry(stream, entry_id)
  local pending = redis.pcall('XPENDING', stream, GROUP, entry_id, entry_id, 1)
  if pending.err or #pending == 0 then return false end
  local found = redis.call('XRANGE', stream, entry_id, entry_id)[1]
  remove_entry(stream, entry_id)
  return true, found and found[2]
end

-- the places of the steps of a request, by field: as they are stored, or as they will be
local function places_of(request)
  local places = {}
  if not renewed[request] then
    local all = redis.call('HGETALL', request)
    for k = 1, #all, 2 do
      if string.sub(all[k], 1, #PLACE) == PLACE then places[all[k]] = all[k + 1] end
    end
  end
  for field, value in pairs(hash_of(request)) do
    if string.sub(field, 1, #PLACE) == PLACE then places[field] = value end
  end
  return places
end

-- take every call of a request off its queue, and from the replica that runs it, which finds the request closed when
-- it commits: while it is pending there, it counts as a call that does not wait. When the request was cancelled or has
-- expired, that replica is notified like a waiter, so that its user code can end.
local function remove_calls(request, request_id, state, payload)
  local is_told = state == State.CANCELLED or state == State.EXPIRED
  for _, place in pairs(places_of(request)) do
    if type(place) == 'table' then
      place.is_removed = true
    else
      local stream, entry = string.match(place or '', '^(.+) (%d+%-%d+)$')
      if stream and kind_of(stream) == 'stream' then
        local running = is_told and redis.pcall('XPENDING', stream, GROUP, entry, entry, 1)[1]
        if running then deliver(mailbox_of(stream, running[2]), request_id, state, payload) end
        remove_entry(stream, entry)
      end
    end
  end
end

-- the number of calls on a stream that no replica has fetched
local function count_waiting(stream)
  local pending = redis.pcall('XPENDING', stream, GROUP)
  local running = (not pending.err) and pending[1] or 0
  return redis.call('XLEN', stream) - running
end

-- the id of the entry of a stream that a replica has fetched last
local function last_delivered(stream)
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  for _, found in ipairs(groups.err and {} or groups) do
    local group = by_name(found)
    if group.name == GROUP then return group['last-delivered-id'] end
  end
  return '0-0'
end

-- how long the oldest call has waited that no replica has fetched; 0 when none waits
local function oldest_waiting_ms(stream)
  local oldest = redis.call('XRANGE', stream, '(' .. last_delivered(stream), '+', 'COUNT', 1)[1]
  return oldest and math.max(0, now_ms() - sent_ms(oldest[1])) or 0
end

-- seconds after which a full queue is worth another try: by Little's law, the call at its head has waited as long as
-- all those that wait take to begin
local function retry_after_s(stream)
  return math.max(1, math.min(LONGEST_RETRY_AFTER_S, math.ceil(oldest_waiting_ms(stream) / 1000)))
end
