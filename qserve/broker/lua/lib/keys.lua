-- The names of keys that belong to another key. `Keys` in qserve/base/keys.py gives the same names in Python.

local function of_kind(key, from, to)
  return (string.gsub(key, '}:' .. from .. ':', '}:' .. to .. ':', 1))
end

local function namespace_of(key)
  return string.match(key, '^.-}:')
end

local function request_of(key, request_id)
  return namespace_of(key) .. REQUEST .. ':' .. request_id
end

local function dead_letter_of(request)
  return of_kind(request, REQUEST, DEAD_LETTER)
end

local function events_of(request)
  return of_kind(request, REQUEST, EVENTS)
end

local function traces_of(key)
  return namespace_of(key) .. TRACES
end

local function webhook_of(request)
  return of_kind(request, REQUEST, WEBHOOK)
end

local function webhooks_of(key)
  return namespace_of(key) .. WEBHOOKS
end

local function ends_of(key)
  return namespace_of(key) .. ENDS
end

-- the mailbox of a replica
local function mailbox_of(stream, consumer)
  return namespace_of(stream) .. MAILBOX .. ':' .. consumer
end

-- where the bytes of the results are counted that were left in one part of the time
local function left_of(request, width_ms, part)
  return namespace_of(request) .. LEFT .. ':' .. width_ms .. ':' .. part
end

local function dead_letters_of(key)
  return namespace_of(key) .. DEAD_LETTERS
end

local function letter_bytes_of(key)
  return dead_letters_of(key) .. ':' .. LETTER_BYTES
end

-- the id at the end of the key of a request or dead letter
local function id_of(key)
  return string.match(key, '[^:]*$')
end

-- the stream of a deployment, given that or a stream of one of its replicas
local function common_of(stream)
  return (string.gsub(stream, PERSONAL .. '.*$', ''))
end

local function delayed_of(stream)
  return of_kind(common_of(stream), QUEUE, DELAYED)
end

local function queue_of(delayed)
  return of_kind(delayed, DELAYED, QUEUE)
end

local function models_of(stream)
  return of_kind(stream, QUEUE, MODELS)
end
