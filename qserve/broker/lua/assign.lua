-- assign: say what workers are to run, as long as the one who says it leads.
--
-- If it does not run, all workers go on with what they were to run before.
--
-- Returns OK, or STALE when `mine` is not what is held any more: another one leads.

if redis.call('GET', lead) ~= mine then return Reply.STALE end
for k, worker in ipairs(workers) do hset(plan, worker, assignments[k] ~= '' and assignments[k]) end
carry_out()
return Reply.OK
