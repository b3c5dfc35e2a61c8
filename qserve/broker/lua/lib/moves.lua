-- Moves: what a submission or the end of a call starts.
-- `put` says what becomes of a call that may start: `enqueue`, or `keep_call` for a dead letter.

-- fill slots of a join, and start its step when `needs` of them are filled; returns whether it has started
local function fill(request, stream, header, step, needs, slots, put, notes)
  local filled = 0
  for _, slot in ipairs(slots) do
    filled = filled + redis.call('HSETNX', request, step .. '.' .. slot[1], slot[2])
  end
  if filled == 0 or redis.call('HINCRBY', request, step .. '.n', filled) ~= needs then return false end
  local names = {}
  for slot = 0, needs - 1 do names[#names + 1] = step .. '.' .. slot end
  local fields = { CallField.HEADER, header, CallField.STEP, step }
  for slot, value in ipairs(redis.call('HMGET', request, unpack(names))) do
    fields[#fields + 1] = slot - 1
    fields[#fields + 1] = value
  end
  put(request, stream, step, fields, notes)
  redis.call('HDEL', request, unpack(names))
  return true
end

local function apply(moves, streams, request, header, put, notes)
  for k = 1, #moves do
    local move = moves[k]
    local stream = streams[move.place]
    if move.fields then
      move.fields[2] = header
      put(request, stream, move.step, move.fields, notes)
    else
      fill(request, stream, header, move.step, move.needs, move.slots, put, notes)
    end
  end
end
