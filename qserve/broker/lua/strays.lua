-- strays: return which entries that a replica has just read must not run, since no open request names them.
--
-- It writes nothing. If it does not run, user code may run for a copy of an entry; its commit has no effects.
--
-- It is sent right behind a read, and the broker runs it before that read's reply leaves: it costs no round trip.
-- `after` has the id of the last entry that was read before, for each stream.
--
-- Returns a list of { stream, id }.

-- whether the entry is one that an open request, or its dead letter, names
local function is_wanted(request, place, slot)
  local stored = redis.pcall('HMGET', request, Field.STATE, slot)
  if stored[1] == State.OPEN or stored.err then return stored[2] == place end
  local letter = dead_letter_of(request)
  return kind_of(letter) == 'hash' and redis.call('HGET', letter, slot) == place
end

local found = {}
for k, stream in ipairs(streams) do
  local pending = redis.pcall('XPENDING', stream, GROUP, '(' .. after[k], '+', READ_COUNT, consumer)
  for _, delivery in ipairs(pending.err and empty or pending) do
    local entry_id = delivery[1]
    local entry = redis.call('XRANGE', stream, entry_id, entry_id)[1]
    local id, step
    for n = 1, entry and #entry[2] or 0, 2 do
      local name = entry[2][n]
      if name == CallField.HEADER then id = request_id_of(entry[2][n + 1]) end
      if name == CallField.STEP then step = entry[2][n + 1] end
      if id and step then break end
    end
    if id and not is_wanted(request_prefix .. id, stream .. ' ' .. entry_id, PLACE .. (step or '')) then
      found[#found + 1] = { stream, entry_id }
    end
  end
end
return found
