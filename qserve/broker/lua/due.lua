-- due: take webhooks whose time has come; they come again after HOOK_LEASE_MS, unless `settle` says something else.
--
-- If it does not run, they are due. If who took them dies, they come again.
--
-- Returns for each { request's id, target, state, payload, when, tries }; the state of a request that is still open
-- after its deadline is ''.

local found = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', index, '-inf', now_ms(), 'LIMIT', 0, count)) do
  local key = webhook_prefix .. id
  local fields = { HookField.TARGET, HookField.STATE, HookField.PAYLOAD, HookField.AT, HookField.TRIES }
  local parts = may_be(key, 'hash') and hmget(key, fields) or empty
  if parts[1] then
    write('ZADD', index, now_ms() + HOOK_LEASE_MS, id)
    found[#found + 1] = { id, parts[1], parts[2] or '', parts[3] or '', parts[4] or 0, parts[5] or 0 }
  else
    write('ZREM', index, id)
  end
end
carry_out()
return found
