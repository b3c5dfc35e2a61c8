-- Values that are stored beside the messages. Each has a hash, `y:<name>`: HOLDERS counts the requests, dead letters, kept
-- results and items that hold it, and its parts are there where the broker itself stores it. It is removed with the last
-- of its holders. A holder says in Field.VALUES which values it holds, and how many of its steps have yet to take each:
-- its request takes all that is left of them when it ends, but for that of its result.
-- What is in one table counts as one local name, of which Lua allows 200.

local payloads = { is_touched = false }

function payloads.key(key, name)
  return namespace_of(key) .. VALUE .. ':' .. name
end

-- count one holder more or less; the value lives as long as the longest-lived of them
function payloads.count(key, name, by, ttl_ms)
  local value = payloads.key(key, name)
  if not may_be(value, 'hash') then return end -- it was overwritten: who reads it finds that it is lost
  payloads.is_touched = true
  -- until it has a holder, its parts live only as long as it takes to store them
  local before = hget(value, HOLDERS) and (lives[value] or redis.call('PTTL', value)) or 0
  hset(value, HOLDERS, count_in(value, HOLDERS) + by)
  if ttl_ms then lives[value] = math.max(before, ttl_ms) end
end

-- remove values that nobody has begun to hold
function payloads.drop(key, uses)
  for name in pairs(uses) do payloads.count(key, name, 0) end
end

-- the values that a field of a holder names, with the uses that are left of each
function payloads.read(packed)
  local is_read, found = pcall(cmsgpack.unpack, packed or cmsgpack.pack({}))
  return is_read and type(found) == 'table' and found or {}
end

-- let a holder have more uses of some values, or fewer: `uses` by their names; they live as long as it does, or `ttl_ms`
function payloads.change(holder, uses, ttl_ms)
  if uses == empty then return end
  local held = payloads.read(hget(holder, Field.VALUES))
  local life_ms = ttl_ms or lives[holder] or redis.call('PTTL', holder)
  for name, by in pairs(uses) do
    local before = tonumber(held[name]) or 0
    local left = before + by
    if left > 0 and before <= 0 then payloads.count(holder, name, 1, life_ms + 0) end
    if left <= 0 and before > 0 then payloads.count(holder, name, -1) end
    held[name] = left > 0 and left or nil
  end
  hset(holder, Field.VALUES, next(held) and cmsgpack.pack(held))
end

-- count one holder more (with its life), or less, of all that a field names
function payloads.count_all(key, packed, by, ttl_ms)
  for name in pairs(packed and payloads.read(packed) or empty) do
    if type(name) == 'string' then payloads.count(key, name, by, ttl_ms) end
  end
end

-- note whose value an item of a stream has; a producer is never this far ahead of its reader
function payloads.note_item(request, name)
  local names = payloads.read(hget(request, Field.ITEMS))
  if #names == ITEMS_NOTED then table.remove(names, 1) end
  names[#names + 1] = name
  hset(request, Field.ITEMS, cmsgpack.pack(names))
end

-- a stream was stopped: its reader reads no more items; what it has read is gone already
function payloads.drop_items(request, packed)
  for _, name in ipairs(payloads.read(packed)) do
    if type(name) == 'string' then payloads.count(request, name, -1) end
  end
end

-- a dead letter is thrown away: it holds its values no more
function payloads.release(letter)
  if may_be(letter, 'hash') then payloads.count_all(letter, hget(letter, Field.VALUES), -1) end
end

-- the bytes that values take in the broker
function payloads.bytes(key, packed)
  local bytes = 0
  for name in pairs(packed and payloads.read(packed) or empty) do
    local value = payloads.key(key, name)
    if kind_of(value) == 'hash' then
      bytes = bytes + redis.call('HLEN', value) * redis.call('HSTRLEN', value, '0')
    end
  end
  return bytes
end

-- a reply with the names of the values behind it that nobody holds any more
function payloads.reply(reply)
  if not payloads.is_touched then return reply end
  payloads.is_touched = false
  local found = { reply }
  for key, hash in pairs(hashes) do
    if type(hash[HOLDERS]) == 'number' and hash[HOLDERS] <= 0 then found[#found + 1] = id_of(key) end
  end
  return found[2] and found or reply
end
