-- strays: return which entries that a replica has just read must not run, since no open request names them.
--
-- It writes nothing. If it does not run, user code may run for a copy of an entry; its commit has no effects.
--
-- It is sent right behind a read, and the broker runs it before that read's reply leaves: it costs no round trip.
-- `after` has the id of the last entry that was read before, for each stream.
--
-- Returns a list of { stream, id }.

local found = {}
for k, stream in ipairs(streams) do
  local pending = redis.pcall('XPENDING', stream, GROUP, '(' .. after[k], '+', READ_COUNT, consumer)
  for _, delivery in ipairs(pending.err and empty or pending) do
    local entry = redis.call('XRANGE', stream, delivery[1], delivery[1])[1]
    local call = entry and by_name(entry[2])
    local id = call and request_id_of(call[CallField.HEADER])
    if id then
      local request = request_prefix .. id
      local keeper = may_be(request, 'hash') and may_be(dead_letter_of(request), 'hash') and keeper_of(request)
      if not keeper or not is_named(keeper, call[CallField.STEP] or '', stream, delivery[1]) then
        found[#found + 1] = { stream, delivery[1] }
      end
    end
  end
end
return found
