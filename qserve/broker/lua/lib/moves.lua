-- Moves: what a submission or the end of a call starts.
-- `put` says what becomes of a call that may start: `enqueue`, or `keep_call` for a dead letter.

local function check_inputs(count)
  if count > INPUTS_LIMIT then fail('a step has ' .. count .. ' inputs, more than ' .. INPUTS_LIMIT) end
end

-- fill slots of a join, and start its step when `needs` of them are filled; returns whether it has started
local function fill(request, stream, header, step, needs, slots, put)
  check_inputs(needs)
  local filled = 0
  for _, slot in ipairs(slots) do
    local name = step .. '.' .. slot[1]
    if not hget(request, name) then
      hset(request, name, slot[2])
      if put == keep_call then count_bytes(request, #slot[2]) end
      filled = filled + 1
    end
  end
  if filled == 0 then return false end
  local count = count_in(request, step .. '.n') + filled
  hset(request, step .. '.n', count)
  if count ~= needs then return false end
  local names = {}
  for slot = 0, needs - 1 do names[#names + 1] = step .. '.' .. slot end
  local fields = { CallField.HEADER, header, CallField.STEP, step }
  for slot, value in ipairs(hmget(request, names)) do
    if not value then fail('a step has lost one of its inputs: its request was overwritten') end
    fields[#fields + 1] = slot - 1
    fields[#fields + 1] = value
  end
  put(request, stream, step, fields)
  for _, name in ipairs(names) do hdel(request, name) end
  return true
end

local function apply(moves, streams, request, header, put)
  for k = 1, #moves do
    local move = moves[k]
    local stream = streams[move.place]
    if move.fields then
      check_inputs(#move.fields / 2 - 2)
      move.fields[2] = header
      put(request, stream, move.step, move.fields)
    else
      fill(request, stream, header, move.step, move.needs, move.slots, put)
    end
  end
end
