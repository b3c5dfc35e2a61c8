-- settle: end one try to deliver a webhook, which comes back after `wait_ms`, or is over (-1).
--
-- If it does not run, the webhook is sent again after HOOK_LEASE_MS.
--
-- Returns OK, or STALE when it was delivered before, by somebody else.

if wait_ms < 0 or not exists(webhook) then
  write('ZREM', index, request_id)
  write('DEL', webhook)
  local reply = exists(webhook) and Reply.OK or Reply.STALE
  carry_out()
  return reply
end
hset(webhook, HookField.TRIES, tries)
write('ZADD', index, now_ms() + wait_ms, request_id)
carry_out()
return Reply.OK
