-- Webhooks. Each is a hash beside its request, with the fields of `HookField`. The ids of those that are not delivered
-- yet are in one zset, by when they are to be sent. Until its end, a request is in it with its deadline, since nobody
-- else may be there to end it.

-- note at its submission that the end of a request is to be sent; returns what waits for it
local function expect_end(request, request_id, sealed, ttl_ms)
  local webhook = webhook_of(request)
  hset(webhook, HookField.TARGET, sealed)
  lives[webhook] = ttl_ms
  delay(webhooks_of(request), request_id, now_ms() + ttl_ms - CLOCK_MARGIN_MS + LATE_MS, ttl_ms)
  return cmsgpack.pack({ webhook = webhook })
end

-- have the end of a request sent; of a long result only that there is one
local function end_webhook(webhook, request_id, state, payload)
  hset(webhook, HookField.STATE, state)
  hset(webhook, HookField.PAYLOAD, #payload <= HOOK_BYTES and payload or '')
  hset(webhook, HookField.AT, now_ms())
  lives[webhook] = WEBHOOK_TTL_MS
  delay(webhooks_of(webhook), request_id, now_ms(), WEBHOOK_TTL_MS)
end
