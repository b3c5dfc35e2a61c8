-- Events of a request: a stream beside it, of entries that its replicas have sealed. They are written down once somebody
-- follows the request, or its code has said how far it is; until then they cost nothing. Each has the time by the
-- broker's clock beside it. When a traced request ends, they are kept with it as one entry of a stream: its trace.

-- write down one event more, and keep the last ones
local function log_event(request, event)
  local log, number = events_of(request), count_in(request, Field.EVENTS) + 1
  if not may_be(log, 'stream') then return end -- it was overwritten: that costs the event, and not the call
  hset(request, Field.EVENTS, number)
  write('XADD', log, 'MAXLEN', EVENTS_KEPT, number .. '-0', 'e', event, 'ms', now_ms())
  write('PEXPIRE', log, redis.call('PTTL', request))
end

-- keep what is known of a traced request that ends: no more than TRACE_BYTES of it, for the last TRACES_KEPT of them
local function keep_trace(request, state, payload, last)
  local began, header, queue = unpack(hmget(request, { Field.TRACED, Field.HEADER, Field.QUEUE }))
  local traces, log = traces_of(request), events_of(request)
  if not (began and header and may_be(traces, 'stream')) then return end
  queue = queue or '' -- of one that an older version of this library has accepted
  local room = TRACE_BYTES - #header - #queue
  if room < 0 then return end
  if state == State.DONE or #payload > room / 2 then payload = '' end
  room = room - #payload
  local events = {}
  local function keep(event, at)
    local size = #event + 2 * #(at .. '') -- the time, and as much for what packing adds
    if size > room then return end
    room = room - size
    events[#events + 1] = { event, at }
  end
  if last ~= '' then keep(last, now_ms()) end
  local logged = may_be(log, 'stream') and redis.call('XRANGE', log, '-', '+') or empty
  for _, entry in ipairs(logged) do keep(entry[2][2], entry[2][4] or '') end
  write('XADD', traces, 'MAXLEN', TRACES_KEPT, '*', Field.STATE, state, Field.TRACED, began, Field.HEADER, header,
    Field.QUEUE, queue, Field.RESULT, payload, Field.EVENTS, cmsgpack.pack(events))
  write('PEXPIRE', traces, TRACES_TTL_MS)
end

-- tell the replicas that run calls of a request that somebody follows it
local function announce_reader(request, request_id)
  for _, place in pairs(places_of(request)) do
    local stream, entry = string.match(place, '^(.+) (%d+%-%d+)$')
    if stream and is_stream(stream) then
      local running = redis.pcall('XPENDING', stream, GROUP, entry, entry, 1)[1]
      if running then deliver(mailbox_of(stream, running[2]), request_id, OBSERVED, '') end
    end
  end
end
