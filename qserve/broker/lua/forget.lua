-- forget: drop results that are not needed any more, those of open requests when they come.
--
-- If it does not run, the results are kept until their time to live is over.
--
-- Returns OK, or { OK, names of the stored values that nobody holds any more }.

for _, request in ipairs(requests) do
  local state = hget(request, Field.STATE)
  if state == State.OPEN then
    hset(request, Field.KEEP, -1)
  elseif state then
    payloads.count_all(request, hget(request, Field.VALUES), -1)
    write('DEL', request)
  end
end
local reply = payloads.reply(Reply.OK)
carry_out()
return reply
