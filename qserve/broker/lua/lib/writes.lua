-- Writes. A function computes first and writes last. It collects here what it will write, where `hget` and `exists` already
-- see it, and ends with `carry_out`. Everything that can fail has been computed and checked by then, so a function that
-- fails has changed nothing. tests/broker/test_writes_come_last.py enforces this.

local added = {} -- entries of streams
local removed = {} -- stream and id of each entry that goes
local hashes = {} -- the fields of each hash that change; false: removed
local renewed = {} -- the hashes of which all other fields go
local lives = {} -- the times to live of hashes
local mail = {} -- mailbox and text of each message
local writes = {} -- all other commands
local kinds = {} -- the types of keys

-- every function begins with this: one that failed leaves behind what it had collected. The tables are emptied and used
-- again: what a function spends on new ones is more than what it spends on calls
local function collect()
  for key in next, kinds do kinds[key] = nil end
  for key in next, hashes do hashes[key] = nil end
  for key in next, lives do lives[key] = nil end
  for key in next, renewed do renewed[key] = nil end
  for k = #added, 1, -1 do added[k] = nil end
  for k = #mail, 1, -1 do mail[k] = nil end
  for k = #removed, 1, -1 do removed[k] = nil end
  for k = #writes, 1, -1 do writes[k] = nil end
end

local function kind_of(key)
  local kind = kinds[key]
  if not kind then
    kind = redis.call('TYPE', key).ok
    kinds[key] = kind
  end
  return kind
end

-- whether a key is of this type, or not there
local function may_be(key, kind)
  local found = kind_of(key)
  return found == kind or found == 'none'
end

local function fail(why)
  error({ err = why })
end

local function check(key, kind)
  if not may_be(key, kind) then fail('WRONGTYPE ' .. key .. ' is not a ' .. kind .. ': it was overwritten') end
end

local function write(...)
  writes[#writes + 1] = { ... }
end

local function hash_of(key)
  local hash = hashes[key]
  if not hash then
    check(key, 'hash')
    hash = {}
    hashes[key] = hash
  end
  return hash
end

local function hset(key, field, value)
  hash_of(key)[field] = value
end

local function hdel(key, field)
  hash_of(key)[field] = false
end

-- begin a hash that has none of its fields any more
local function renew(key)
  check(key, 'hash')
  hashes[key], renewed[key], lives[key] = {}, true, nil
end

local function hget(key, field)
  local hash = hashes[key]
  if hash then
    local value = hash[field]
    if value ~= nil or renewed[key] then return value or false end
  end
  local stored = redis.call('HGET', key, field)
  kinds[key] = 'hash' -- or the command had failed
  return stored
end

local function hmget(key, names)
  local hash = hashes[key]
  if not hash and #names <= FIELDS_AT_ONCE then
    local stored = redis.call('HMGET', key, unpack(names))
    kinds[key] = 'hash'
    return stored
  end
  local values = {}
  for first = 1, #names, FIELDS_AT_ONCE do
    local last = math.min(first + FIELDS_AT_ONCE - 1, #names)
    local stored = redis.call('HMGET', key, unpack(names, first, last))
    for k = first, last do
      local value = hash and hash[names[k]]
      if value == nil then value = not renewed[key] and stored[k - first + 1] end
      values[k] = value
    end
  end
  return values
end

-- whether a hash is there
local function exists(key)
  local hash = hashes[key]
  if hash then
    for _, value in pairs(hash) do
      if value then return true end
    end
    if renewed[key] then return false end
  end
  return redis.call('EXISTS', key) == 1
end

-- a count that a field holds; bytes that are not a number count as nothing
local function count_in(key, field)
  return tonumber(hget(key, field) or 0) or 0
end

-- put an entry on a stream
-- Returns a table to be stored in a hash, where it becomes the place of the entry.
local function add_entry(stream, fields)
  check(stream, 'stream')
  if #fields > ENTRY_LIMIT then fail('a call has more values than an entry can hold') end
  local entry = { stream = stream, fields = fields }
  added[#added + 1] = entry
  return entry
end

-- take an entry off its stream, and from the replica that holds it
local function remove_entry(stream, entry_id)
  removed[#removed + 1] = stream
  removed[#removed + 1] = entry_id
end

-- whether only the length of a result is sent to a mailbox: its reader fetches the result when it has room
local function is_announced(mailbox, payload)
  return #payload > ANNOUNCED_FROM and string.sub(mailbox, -1) == COUNTS
end

local function deliver(mailbox, request_id, state, payload)
  if is_announced(mailbox, payload) and state ~= ITEM then state, payload = ANNOUNCED, #payload end
  mail[#mail + 1] = mailbox
  mail[#mail + 1] = request_id .. state .. payload
end

-- -- what is written; `redis.pcall` returns errors, and raises none ---------------------------------------------------

local set, gone = { 'HSET' }, { 'HDEL' }

local function write_hash(key, hash)
  -- a stored value that nobody holds any more
  if type(hash[HOLDERS]) == 'number' and hash[HOLDERS] <= 0 then return redis.pcall('UNLINK', key) end
  if renewed[key] then redis.pcall('DEL', key) end
  local set_count, gone_count = 2, 2
  set[2], gone[2] = key, key
  for field, value in pairs(hash) do
    if value then
      set[set_count + 1] = field
      set[set_count + 2] = type(value) == 'table' and value.place or value
      set_count = set_count + 2
      if set_count > FIELDS_AT_ONCE then
        redis.pcall(unpack(set, 1, set_count))
        set_count = 2
      end
    else
      gone_count = gone_count + 1
      gone[gone_count] = field
      if gone_count > FIELDS_AT_ONCE then
        redis.pcall(unpack(gone, 1, gone_count))
        gone_count = 2
      end
    end
  end
  if set_count > 2 then redis.pcall(unpack(set, 1, set_count)) end
  if gone_count > 2 then redis.pcall(unpack(gone, 1, gone_count)) end
  if lives[key] then redis.pcall('PEXPIRE', key, lives[key]) end
end

local function write_mail(mailbox, text)
  -- the result is stored as well: a mailbox of another type must not undo the function that delivers to it
  local length = redis.pcall('RPUSH', mailbox, text)
  -- its reader empties it again and again: only a list that is not read, or is crowded, needs more time
  if length == 1 or type(length) == 'number' and length > MAILBOX_CROWDED then
    redis.pcall('PEXPIRE', mailbox, MAILBOX_TTL_MS)
  end
end

local function carry_out()
  -- first what no check can foresee: a stream may have given its last id
  for k = 1, #added do
    local entry = added[k]
    if not entry.is_removed then
      local id = redis.pcall('XADD', entry.stream, '*', unpack(entry.fields))
      if type(id) ~= 'string' then
        for before = 1, k - 1 do redis.pcall('XDEL', added[before].stream, added[before].id) end
        error(id)
      end
      entry.id = id
      entry.place = entry.stream .. ' ' .. id
    end
  end
  for k = 1, #removed, 2 do
    redis.pcall('XACK', removed[k], GROUP, removed[k + 1])
    redis.pcall('XDEL', removed[k], removed[k + 1])
  end
  for k = 1, #writes do redis.pcall(unpack(writes[k])) end
  for key, hash in pairs(hashes) do write_hash(key, hash) end
  for k = 1, #mail, 2 do write_mail(mail[k], mail[k + 1]) end
end
