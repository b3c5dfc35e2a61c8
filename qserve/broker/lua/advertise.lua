-- advertise: say which models a replica holds, so that calls for them come to it while it is free.
--
-- If it does not run, calls for these models go to any replica.
--
-- Returns OK.

take_down(models, consumer, personal)
redis.call('HSET', models, 's:' .. consumer, personal)
local mine = cmsgpack.pack({ consumer, personal })
for _, model_id in ipairs(held) do redis.call('HSET', models, 'm:' .. model_id, mine) end
redis.call('PEXPIRE', models, ttl_ms)
redis.call('PEXPIRE', personal, ttl_ms)
return Reply.OK
