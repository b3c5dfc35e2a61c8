-- unwanted: return which running calls would change nothing when they end: their request has ended, or another entry
-- stands for their step.
--
-- It writes nothing. If it does not run, their code goes on until its deadline, without effects.
--
-- Returns for each call '' while it is wanted, else the state of its request, or '?' when that is not known.

local found = {}
for k, request in ipairs(requests) do
  local state = redis.pcall('HGET', request, Field.STATE)
  found[k] = is_wanted(request, places[k], PLACE .. steps[k]) and '' or type(state) == 'string' and state or '?'
end
return found
