-- strays: return which entries that a replica has just read must not run, since no open request names them.
--
-- It writes nothing. If it does not run, user code may run for a copy of an entry; its commit has no effects.
--
-- It is sent right behind a read, and the broker runs it before that read's reply leaves: it costs no round trip.
-- `after` has the id of the last entry that was read before, for each stream.
--
-- Returns a list of { stream, id }; and { stream, id, 1 } of each call that is to run and somebody follows.

-- the fields of entries by their ids; those of one read lie side by side, so that one look finds most of them
local function fields_of(stream, pending)
  local found = {}
  local first, last = pending[1][1], pending[#pending][1]
  for _, entry in ipairs(redis.call('XRANGE', stream, first, last, 'COUNT', #pending)) do found[entry[1]] = entry[2] end
  for _, delivery in ipairs(pending) do
    local id = delivery[1]
    if not found[id] then
      local entry = redis.call('XRANGE', stream, id, id)[1]
      found[id] = entry and entry[2]
    end
  end
  return found
end

local found = {}
for k, stream in ipairs(streams) do
  local pending = redis.pcall('XPENDING', stream, GROUP, '(' .. after[k], '+', READ_COUNT, consumer)
  for entry_id, fields in pairs(pending[1] and fields_of(stream, pending) or empty) do
    local header, step = fields[2], fields[4]
    if fields[1] ~= CallField.HEADER or fields[3] ~= CallField.STEP then -- our functions write them in this order
      local call = by_name(fields)
      header, step = call[CallField.HEADER], call[CallField.STEP]
    end
    if header then
      -- a request that has ended names no entries, so that one look is enough for one that runs
      local request, slot = request_prefix .. string.sub(header, 1, REQUEST_ID_CHARS), PLACE .. (step or '')
      local place = stream .. ' ' .. entry_id
      local stored = redis.pcall('HMGET', request, slot, Field.EVENTS)
      if stored[1] == place then
        if stored[2] then found[#found + 1] = { stream, entry_id, 1 } end
      elseif request_id_of(header) and not is_wanted(request, place, slot) then
        found[#found + 1] = { stream, entry_id }
      end
    end
  end
end
return found
