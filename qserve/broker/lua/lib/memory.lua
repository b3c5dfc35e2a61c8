-- Results that are left in the broker for readers who may never come: their bytes are counted, and limited by the
-- memory that the broker may use.
--
-- They are counted in parts of the time for which they are kept. A part expires with the last of its results, so
-- nothing has to be taken off. They are not measured, because how much memory is used depends on the buffers of
-- connections.

-- a part of the memory that the broker may use; nil when it may use all, or an ACL forbids INFO
local function share_of_memory(divisor)
  local info = redis.pcall('INFO', 'memory')
  local limit = type(info) == 'string' and string.match(info, '\nmaxmemory:(%d+)') or 0
  return limit + 0 > 0 and limit / divisor or nil
end

-- the bytes of the results that are left now, and the key and life of the part in which one of this moment is counted
local function count_left(request, keep_ms)
  local width = math.ceil(keep_ms / LEFT_PARTS)
  local part = math.floor(now_ms() / width)
  local bytes = 0
  for k = 0, LEFT_PARTS do
    local found = redis.pcall('GET', left_of(request, width, part - k))
    bytes = bytes + (type(found) == 'string' and tonumber(found) or 0)
  end
  return bytes, left_of(request, width, part), keep_ms + width
end

-- whether what is left takes half of its room, so that no more is begun: as of the last result that was counted
local is_crowded = false

-- count a result; returns false when there is no room for it
local function leave(request, bytes, keep_ms)
  local room = bytes > UNCOUNTED_BYTES and share_of_memory(LEFT_SHARE)
  if not room then return true end
  local left, part, life_ms = count_left(request, keep_ms)
  local is_kept = left + bytes <= room
  if is_kept then
    left = left + bytes
    write('INCRBY', part, bytes)
    write('PEXPIRE', part, life_ms)
  end
  is_crowded = left > room / 2
  return is_kept
end

-- whether one more request may be begun whose result is left
local function may_leave(request, keep_ms)
  if is_crowded then
    local room = share_of_memory(LEFT_SHARE)
    is_crowded = room ~= nil and count_left(request, keep_ms) > room / 2
  end
  return not is_crowded
end
