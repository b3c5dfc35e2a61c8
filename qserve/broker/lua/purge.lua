-- purge: throw dead letters away.
--
-- If it does not run, they are as they were.
--
-- Returns how many there were.

local found = 0
check(index, 'zset')
for place, letter in ipairs(letters) do
  found = found + redis.call('EXISTS', letter)
  uncount_bytes(letter)
  payloads.release(letter)
  write('DEL', letter)
  write('ZREM', index, request_ids[place])
end
carry_out()
return found
