-- lead: take, keep or give up what one process at a time may hold.
--
-- If it does not run, whoever held it holds it still.
--
-- Returns OK, or STALE when another value is there than `was` ('' for none).

check(lead, 'string')
if (redis.call('GET', lead) or '') ~= was then return Reply.STALE end
if now == '' then
  write('DEL', lead)
else
  write('SET', lead, now, 'PX', ttl_ms)
end
carry_out()
return Reply.OK
