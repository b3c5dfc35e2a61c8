-- look: return the state of a request, with its result when it has one.
--
-- It writes nothing, and so it works while a full disk forbids every write.
--
-- Returns { state, result }, of an open request { state, '', header }; { '', '' } when it is not known; and
-- { ANNOUNCED, length } of a long result for a mailbox that counts.

return look_at(request, mailbox)
