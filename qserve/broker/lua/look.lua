-- look: return the state of a request, with its result when it has one.
--
-- It writes nothing, and so it works while a full disk forbids every write.
--
-- Returns { state, result }, of an open request { state, '', header }; { '', '' } when it is not known.

return follow(request, '')
