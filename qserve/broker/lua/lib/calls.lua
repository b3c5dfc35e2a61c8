-- Calls. Each is an entry of a stream: the fields of `CallField`, and 0, 1 ... with the values of its slots.

local function is_stream(key)
  return redis.call('TYPE', key).ok == 'stream'
end

-- the request's id at the head of a header; nil where that is not one
local function request_id_of(header)
  local id = string.sub(header or '', 1, REQUEST_ID_CHARS)
  return #id == REQUEST_ID_CHARS and string.match(id, '^%x+$') and id or nil
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

-- put a call on a stream; the request keeps where its entry lies, so that `remove_calls` finds it
--   notes   collects what the caller will write to the request in one command, which costs a third of three; nil: none
local function enqueue(request, stream, step, fields, notes)
  local place = stream .. ' ' .. redis.call('XADD', stream, '*', unpack(fields))
  if notes and #notes < FIELDS_AT_ONCE then
    notes[#notes + 1] = 'e:' .. step
    notes[#notes + 1] = place
  else
    redis.call('HSET', request, 'e:' .. step, place)
  end
end

-- take an entry off its queue and from the replica that holds it
-- Returns whether the replica held it, and its fields; nil when the entry itself is gone.
local function take_entry(stream, entry_id)
  local found = redis.call('XRANGE', stream, entry_id, entry_id)[1]
  local is_held = redis.call('XACK', stream, GROUP, entry_id) == 1
  if is_held then redis.call('XDEL', stream, entry_id) end
  return is_held, found and found[2]
end

-- take every call of a request off its queue, and from the replica that runs it, which finds the request closed when
-- it commits: while it is pending there, it counts as a call that does not wait
local function remove_calls(request)
  local fields = redis.call('HGETALL', request)
  for k = 1, #fields, 2 do
    if string.sub(fields[k], 1, 2) == 'e:' then
      local stream, entry = string.match(fields[k + 1], '^(.*) (.-)$')
      redis.pcall('XACK', stream, GROUP, entry)
      redis.pcall('XDEL', stream, entry)
    end
  end
end

-- the number of calls on a stream that no replica has fetched
local function count_waiting(stream)
  local pending = redis.pcall('XPENDING', stream, GROUP)
  local running = (not pending.err) and pending[1] or 0
  return redis.call('XLEN', stream) - running
end

-- seconds after which a full queue is worth another try: by Little's law, the call at its head has waited as long as
-- all those that wait take to begin
local function retry_after_s(stream)
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  local last = '0-0'
  for _, found in ipairs(groups.err and {} or groups) do
    local group = by_name(found)
    if group.name == GROUP then last = group['last-delivered-id'] end
  end
  local oldest = redis.call('XRANGE', stream, '(' .. last, '+', 'COUNT', 1)[1]
  if not oldest then return 1 end
  local waited_ms = now_ms() - string.match(oldest[1], '%d+')
  return math.max(1, math.min(LONGEST_RETRY_AFTER_S, math.ceil(waited_ms / 1000)))
end
