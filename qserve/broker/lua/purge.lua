-- purge: throw dead letters away.
--
-- If it does not run, they are as they were.
--
-- Returns how many there were.

local found = 0
for place, letter in ipairs(letters) do
  found = found + redis.call('DEL', letter)
  redis.call('ZREM', index, request_ids[place])
end
return found
