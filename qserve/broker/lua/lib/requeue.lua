-- Entries that leave a queue, or a replica, that is gone.

-- put an entry on `stream`; a call whose request has ended is kept by its dead letter, or dropped
local function requeue(stream, fields, request_prefix)
  local call = by_name(fields)
  local id = request_id_of(call[CallField.HEADER])
  if not id then
    redis.call('XADD', stream, '*', unpack(fields)) -- its next reader finds out that it cannot be read
  elseif is_open(request_prefix .. id) then
    enqueue(request_prefix .. id, stream, call[CallField.STEP] or '', fields)
  else
    keep_if_dead(request_prefix .. id, stream, fields)
  end
end
