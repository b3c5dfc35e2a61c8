-- How a request of a version that goes may go on in the next one: `queues` names the queue that takes the place of each
-- old one, and `other_graphs` the graphs that are not the same in both.

-- the queue on which a call of an open request goes on; nil when it cannot: the answer would come from two versions
local function successor_of(request, stream, queues, other_graphs, is_same_code, is_held)
  local queue = queues[common_of(stream)]
  if not queue or not is_stream(queue) then return nil end
  local header = read_header(hget(request, Field.HEADER) or '')
  for _, graph in ipairs(other_graphs) do
    if graph == header[GRAPH_AT] then return nil end
  end
  if is_same_code then return queue end
  local has_begun = hget(request, Field.COMMITTED_BY) or count_in(request, Field.SENT) > 0
  -- a replica that still runs it may send items
  return not has_begun and not (is_held and header[STREAM_AT]) and queue or nil
end

-- have the result of another request, for which a step waits, fill that step on another queue
local function wait_elsewhere(request, step, stream, queue, request_prefix)
  local awaits = read_header(hget(request, Field.HEADER) or '')[AWAITS_AT]
  for slot, awaited in pairs(type(awaits) == 'table' and awaits or empty) do
    local is_text = type(slot) == 'string' and type(awaited) == 'string'
    local other = is_text and string.match(slot, '^(.*)%.') == step and request_prefix .. awaited
    if other and may_be(other, 'hash') and is_open(other) then
      for k, packed in ipairs(waiters_of(other)) do
        local waiter = read_waiter(packed)
        if waiter and waiter.request == request and waiter.stream == stream then
          waiter.stream = queue
          hset(other, Field.WAITERS .. k, cmsgpack.pack(waiter))
        end
      end
    end
  end
  note_waiting(request, queue, step, redis.call('PTTL', request))
end
