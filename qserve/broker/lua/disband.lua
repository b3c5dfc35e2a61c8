-- disband: put what waits in the own stream of a replica that is gone on the common one, and remove its advertisement.
--
-- If it does not run, the calls wait until the next sweep.
--
-- What the replica had begun is handed over by `reclaim` before.
--
-- Returns the number of calls moved.

take_down(models, consumer, personal)
local left = redis.call('XRANGE', personal, '-', '+')
for _, entry in ipairs(left) do requeue(stream, personal, entry[1], entry[2], request_prefix) end
write('DEL', personal)
local moved = #left
carry_out()
return moved
