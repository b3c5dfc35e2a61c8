-- advertise: say which models a replica holds, so that calls for them come to it while it is free.
--
-- If it does not run, calls for these models go to any replica.
--
-- Returns OK.

take_down(models, consumer, personal)
hset(models, 's:' .. consumer, personal)
local mine = cmsgpack.pack({ consumer, personal })
for _, model_id in ipairs(held) do hset(models, 'm:' .. model_id, mine) end
lives[models] = ttl_ms
write('PEXPIRE', personal, ttl_ms)
carry_out()
return Reply.OK
