-- forget: drop results that are not needed any more, those of open requests when they come.
--
-- If it does not run, the results are kept until their time to live is over.
--
-- Returns OK.

for _, request in ipairs(requests) do
  local state = hget(request, Field.STATE)
  if state == State.OPEN then
    hset(request, Field.KEEP, 0)
  elseif state then
    write('DEL', request)
  end
end
carry_out()
return Reply.OK
