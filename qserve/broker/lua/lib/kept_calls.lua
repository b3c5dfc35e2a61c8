-- Calls that a dead letter keeps for its replay. A dead letter is a hash under its request's id. It holds what the
-- request held (the joins that other branches have filled, the header), the fields of `Field` that say why it is one, and
--   !1, !2 ...   its calls, each a cmsgpack of { stream, fields }; the first one failed
-- The branches of its request that still ran, or end later, add what they would have started.

-- count what a dead letter holds more; the bytes of each one, and of ALL_LETTERS, are in a hash
local function count_bytes(letter, bytes)
  local sizes = letter_bytes_of(letter)
  if bytes <= UNCOUNTED_BYTES or not may_be(sizes, 'hash') then return end
  for _, name in ipairs({ id_of(letter), ALL_LETTERS }) do hset(sizes, name, count_in(sizes, name) + bytes) end
  lives[sizes] = DEAD_LETTER_TTL_MS
end

-- the bytes of a dead letter that goes are counted no more; returns how many they were
local function uncount_bytes(letter)
  local sizes, id = letter_bytes_of(letter), id_of(letter)
  local bytes = may_be(sizes, 'hash') and count_in(sizes, id) or 0
  if bytes > 0 then
    hdel(sizes, id)
    hset(sizes, ALL_LETTERS, math.max(0, count_in(sizes, ALL_LETTERS) - bytes))
  end
  return bytes
end

local function keep_call(letter, stream, step, fields)
  local number = count_in(letter, Field.CALLS) + 1
  local kept = with(fields, { [CallField.DEATHS] = false, [CallField.TRIES] = false })
  hset(letter, Field.CALLS, number)
  local packed = cmsgpack.pack({ stream, kept })
  hset(letter, KEPT_CALL .. number, packed)
  count_bytes(letter, #packed)
  hset(letter, PLACE .. step, '')
end
