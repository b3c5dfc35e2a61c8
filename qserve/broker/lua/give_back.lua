-- What a replica fetched and cannot begin in time.

-- give_back: put deliveries that were not begun back on the queue, as if nobody had fetched them.
-- KEYS  stream, where the calls go (the same stream, or the common one for a replica's own)
-- ARGV  request key prefix, entry id...
-- No death is counted: the fields stay as they are. What was handed over before is left alone, and what was
-- cancelled meanwhile is only acknowledged. Returns how many went back.
local function give_back(keys, argv)
  local given = 0
  for k = 2, #argv do
    local found = redis.call('XRANGE', keys[1], argv[k], argv[k])[1]
    if redis.call('XACK', keys[1], GROUP, argv[k]) == 1 and found then
      redis.call('XDEL', keys[1], argv[k])
      move(keys[2], found[2], argv[1])
      given = given + 1
    end
  end
  return given
end

redis.register_function{ function_name = 'qserve_give_back_@', callback = give_back, flags = { 'allow-oom' } }
