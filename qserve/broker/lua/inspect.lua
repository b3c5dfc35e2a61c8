-- inspect: return what the calls of an open request do, without their values.
--
-- It writes nothing. If it does not run, nothing has changed.
--
-- Returns a list as `peek` does; one that waits for its next try has neither stream nor time. A step that waits for the
-- result of another request is not in it.

local found, header = {}, hget(request, Field.HEADER) or ''
for field, place in pairs(places_of(request)) do
  local step = string.sub(field, #PLACE + 1)
  local stream, entry_id = string.match(place, '^(.+) (%d+%-%d+)$')
  if place == POSTPONED then
    found[#found + 1] = shown_call('', { CallField.HEADER, header, CallField.STEP, step }, RETRIES, '0')
  elseif stream and is_stream(stream) then
    local entry = redis.call('XRANGE', stream, entry_id, entry_id)[1]
    local running = redis.pcall('XPENDING', stream, GROUP, entry_id, entry_id, 1)[1]
    local how = running and RUNS or WAITS
    if entry then found[#found + 1] = shown_call(stream, entry[2], how, sent_ms(entry_id), running and running[2]) end
  end
end
return found
