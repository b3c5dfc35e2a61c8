-- The entry of a step. A request names one, and only that one may end the step, or be moved: a copy that was added to a
-- queue changes nothing.

-- the hash that names the entries of a request: its own while it is open, or that of its dead letter; nil: it has ended
local function keeper_of(request)
  if is_open(request) then return request end
  local letter = dead_letter_of(request)
  return exists(letter) and letter or nil
end

local function is_named(keeper, step, stream, entry_id)
  return hget(keeper, PLACE .. step) == stream .. ' ' .. entry_id
end

-- whether a step still waits for its postponed call, and has no entry
local function is_postponed(keeper, step)
  local place = hget(keeper, PLACE .. step)
  if place == POSTPONED then return true end
  -- an older version leaves the place of the entry that was postponed
  local stream, entry = string.match(type(place) == 'string' and place or '', '^(.+) (%d+%-%d+)$')
  return stream ~= nil and not (is_stream(stream) and redis.call('XRANGE', stream, entry, entry)[1])
end

-- whether an open request names the entry, or the dead letter of one
local function is_wanted(request, place, slot)
  local stored = redis.pcall('HMGET', request, Field.STATE, slot)
  if stored[1] == State.OPEN or stored.err then return stored[2] == place end
  local letter = dead_letter_of(request)
  return kind_of(letter) == 'hash' and redis.call('HGET', letter, slot) == place
end
