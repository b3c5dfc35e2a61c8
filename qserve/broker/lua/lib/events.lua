-- Events of a request: a stream beside it, of entries that its replicas have sealed. They are written down once somebody
-- follows the request, or its code has said how far it is; until then they cost nothing.

-- write down one event more, and keep the last ones
local function log_event(request, event)
  local log, number = events_of(request), count_in(request, Field.EVENTS) + 1
  if not may_be(log, 'stream') then return end -- it was overwritten: that costs the event, and not the call
  hset(request, Field.EVENTS, number)
  write('XADD', log, 'MAXLEN', EVENTS_KEPT, number .. '-0', 'e', event)
  write('PEXPIRE', log, redis.call('PTTL', request))
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
