-- Entries that leave a queue, or a replica, that is gone.

-- end the session of a WebSocket whose replica is gone: only that one could go on with it
local function end_session(stream, entry_id, call, request_prefix, failure)
  local id = request_id_of(call[CallField.HEADER])
  local request = request_prefix .. (id or '')
  if id and is_open(request) and is_named(request, SESSION, stream, entry_id) then
    finish(request, id, State.FAILED, failure)
  end
end

-- put an entry on the stream `to`, with the fields in `changed` replaced; the call of a request that has ended is kept
-- by its dead letter, or dropped, and so is a copy
local function requeue(to, stream, entry_id, fields, request_prefix, changed)
  local call = by_name(fields)
  local id, step = request_id_of(call[CallField.HEADER]), call[CallField.STEP] or ''
  if changed then fields = with(fields, changed) end
  if not id then return add_entry(to, fields) end -- its next reader finds out that it cannot be read
  local keeper = keeper_of(request_prefix .. id)
  if keeper and is_named(keeper, step, stream, entry_id) then
    local put = keeper == request_prefix .. id and enqueue or keep_call
    put(keeper, to, step, fields)
  end
end
