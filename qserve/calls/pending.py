"""The refs of one process that are still open, and what the mailbox says of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from qserve.base.clock import clock
from qserve.calls.ref import ItemRef, Ref
from qserve.calls.replies import UNKNOWN, failed, read_message, read_reply, state_lost
from qserve.exceptions import PayloadError
from qserve.wire.outcome import ITEM, Outcome
from qserve.wire.sealing import Seal, item_context, open_end

log = logging.getLogger(__name__)

LATE_MS = 200
"""How long after its deadline a request is given up here; its last step or its caller normally ends it before.
With the time between two looks, and a mailbox's block, that is less than a second."""
LOOK_S = 0.25
LOOK_AROUND_S = 1.0


class Pending:
    """Open refs by request id, each with its deadline (0 for one that came from elsewhere).

    Several refs may stand for one request: whoever repeats an idempotency key follows the first.

    Parameters:
      seal: Opens what the mailbox brings.
    """

    def __init__(self, seal: Seal) -> None:
        self._seal = seal
        self._open: dict[str, list[tuple[int, Ref]]] = {}
        self._looked_at = self._looked_around_at = 0.0

    def __contains__(self, ref: Ref) -> bool:
        return any(one is ref for _, one in self._open.get(ref.request_id, ()))

    def add(self, ref: Ref, deadline_ms: int = 0) -> None:
        """Expect the end of a request."""
        entries = self._open.setdefault(ref.request_id, [])
        entries.append((deadline_ms, ref))
        if self._open.get(ref.request_id) is not entries:  # settled in between, by another thread
            self.add(ref, deadline_ms)

    def drop(self, ref: Ref) -> None:
        """Expect the end of a request no more for this ref."""
        entries = self._open.get(ref.request_id, [])
        # in place: another thread may be about to settle them, or to add one
        entries[:] = [entry for entry in entries if entry[1] is not ref]
        if not entries:
            self._open.pop(ref.request_id, None)

    def refuse(self, ref: Ref, outcome: Outcome) -> None:
        """This ref's request was not accepted; others of the same id may have been."""
        self.drop(ref)
        ref.settle(outcome)

    def follow(self, ref: Ref) -> None:
        """A ref's request turned out to be somebody else's, whose deadline is not known here."""
        entries = self._open.get(ref.request_id, [])
        entries[:] = [(0, one) if one is ref else (deadline_ms, one) for deadline_ms, one in entries]

    def settle(self, request_id: str, outcome: Outcome) -> None:
        """The request has ended; whoever waits for it wakes."""
        for _, ref in self._open.pop(request_id, ()):
            ref.settle(outcome)

    def __len__(self) -> int:
        return len(self._open)

    def settle_all(self, outcome: Outcome) -> None:
        """All of them have ended in the same way."""
        for request_id in list(self._open):
            self.settle(request_id, outcome)

    def arrive(self, message: bytes) -> None:
        """Take a message of the mailbox: the end of a request, or an item of its result."""
        try:
            request_id, outcome = read_message(message)
        except PayloadError as error:  # whoever wrote it, the others that wait here must still get theirs
            log.warning("dropped: %s", error)
            return
        entries = self._open.get(request_id)
        if entries is None:
            return  # ended here before: a reply that comes twice changes nothing
        if outcome.state != ITEM:
            self.settle(request_id, open_end(self._seal, request_id, outcome))
            return
        for _, ref in entries:
            if isinstance(ref, ItemRef):
                self._add_item(ref, outcome.payload)

    def _add_item(self, ref: ItemRef, sealed: bytes) -> None:
        try:
            item = self._seal.open(item_context(ref.request_id, ref.received), sealed)
        except PayloadError as error:
            self.settle(ref.request_id, failed(error))
        else:
            ref.add(item)

    def on_watched(self, ref: Ref) -> Callable[[Any], None]:
        """What takes the answer of ``watch``.

        A request that this process submitted, and that is still awaited, is unknown when the server that accepted it
        failed before its replica had it. Before it is accepted, that only says that the question came first: another
        thread has the ref already, and the submission is on its way.
        """

        def on_reply(reply: Any) -> None:
            if reply == UNKNOWN and self._is_own(ref):
                outcome = state_lost() if ref.accepted.is_set() else None
            else:
                outcome = read_reply(reply, self._seal, ref.request_id)
            if outcome is not None:
                self.settle(ref.request_id, outcome)

        return on_reply

    def _is_own(self, ref: Ref) -> bool:
        return any(one is ref and deadline_ms for deadline_ms, one in self._open.get(ref.request_id, ()))

    def refs(self) -> list[Ref]:
        """All of them."""
        return [ref for entries in list(self._open.values()) for _, ref in list(entries)]

    def due(self) -> tuple[list[Ref], list[Ref]]:
        """A few times a second: the refs past their deadline; once a second: those that came from elsewhere."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_S:
            return [], []
        self._looked_at = now
        late_ms = clock.judge_ms() - LATE_MS
        entries = [entry for together in list(self._open.values()) for entry in list(together)]
        late = [ref for deadline_ms, ref in entries if deadline_ms and deadline_ms < late_ms]
        if now - self._looked_around_at < LOOK_AROUND_S:
            return late, []
        self._looked_around_at = now
        return late, [ref for deadline_ms, ref in entries if not deadline_ms]
