"""The mailbox of a process: the refs that are still open, and the messages and replies that settle them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from qserve.base import failpoints
from qserve.base.clock import clock
from qserve.base.keys import Keys
from qserve.base.log import get_logger
from qserve.broker import functions
from qserve.broker.connection import (
    CLIENT_ERRORS,
    LONGEST_PAUSE_S,
    MAILBOX_BLOCK_S,
    STRAY_READ_S,
    process_name,
    refusal,
)
from qserve.broker.functions import ACCEPTED, NOT_REPLICATED, Found, Reply, read_found
from qserve.broker.library import Command
from qserve.broker.link import OnReply
from qserve.calls.ref import ItemRef, Ref, failed
from qserve.exceptions import (
    AppNotFound,
    BackPressureError,
    BrokerError,
    BrokerStateLost,
    BrokerUnavailable,
    IdempotencyMismatch,
    NotReplicated,
    PayloadError,
    ResultUnavailable,
)
from qserve.wire.envelope import REQUEST_ID_CHARS
from qserve.wire.moves import Epoch
from qserve.wire.outcome import ITEM, Outcome, State
from qserve.wire.request_ids import is_genuine
from qserve.wire.sealing import Seal, item_context, open_end, open_header

log = get_logger(__name__)

GRACE_MS = 200
"""How long after its deadline a request is ended from here; its last step or its caller normally does so before."""
DEADLINE_INTERVAL_S = 0.25
"""How often the deadlines of the open refs are checked."""
FOLLOW_INTERVAL_S = 1.0
"""How often the broker is asked about requests that this process did not submit."""
EPOCH_INTERVAL_S = 1.0
"""How often the broker is asked, while refs are open, whether it has lost its data."""

_STATES = frozenset(state.encode() for state in State if state is not State.OPEN) | {ITEM.encode()}
_READ_COUNT = 256
_FIRST_PAUSE_S = 0.05

Action = Command | float
Post = Callable[[Command, OnReply], None]


class Mailbox:
    """Holds the open refs of one process and settles them; other threads may add and remove refs meanwhile.

    A request can have several refs: a call with an idempotency key that was used before follows the first one.

    Parameters:
      seal: Opens the messages.
      post: Sends a command, and calls back with its reply.
    """

    def __init__(self, keys: Keys, seal: Seal, post: Post) -> None:
        self.name = keys.mailbox(process_name())
        self.epoch = Epoch(keys.epoch)
        self._keys = keys
        self._seal = seal
        self._post = post
        # by request id: each ref with its deadline, which is 0 for a request that another process submitted
        self._open: dict[str, dict[Ref[Any], int]] = {}
        self._stream_ends: list[tuple[str, Outcome]] = []
        self._command: Command = ("BLMPOP", str(MAILBOX_BLOCK_S), 1, self.name, "LEFT", "COUNT", _READ_COUNT)
        self._was_lost = False
        self._deadlines_at = self._follow_at = self._epoch_at = self._stray_until = 0.0

    def __contains__(self, ref: Ref[Any]) -> bool:
        return ref in self._open.get(ref.request_id, ())

    # -- open refs ---------------------------------------------------------------------------------

    def add(self, ref: Ref[Any], deadline_ms: int = 0) -> None:
        """Expect the end of a request; a deadline of 0 is for one that another process submitted."""
        refs = self._open.setdefault(ref.request_id, {})
        refs[ref] = deadline_ms
        if self._open.get(ref.request_id) is not refs:  # settled in between by another thread
            self.add(ref, deadline_ms)

    def remove(self, ref: Ref[Any]) -> None:
        refs = self._open.get(ref.request_id, {})
        refs.pop(ref, None)
        if not refs:
            self._open.pop(ref.request_id, None)

    def refuse(self, ref: Ref[Any], outcome: Outcome) -> None:
        """Settle this ref only: its submission was refused, but others of the same id may have been accepted."""
        self.remove(ref)
        ref.settle(outcome, was_accepted=False)

    def clear_deadline(self, ref: Ref[Any]) -> None:
        """Note that another process submitted the request before, with a deadline that is not known here."""
        refs = self._open.get(ref.request_id, {})
        if ref in refs:
            refs[ref] = 0

    def settle(self, request_id: str, outcome: Outcome, was_accepted: bool = True) -> None:
        for ref in list(self._open.pop(request_id, ())):
            ref.settle(outcome, was_accepted)

    def submitted(self) -> list[Ref[Any]]:
        """Return the open refs of requests that this process has submitted."""
        return [ref for refs in list(self._open.values()) for ref, deadline_ms in list(refs.items()) if deadline_ms]

    def expire(self, ref: Ref[Any]) -> None:
        """End a request whose deadline has passed, here and in the broker."""
        self.close(ref, State.EXPIRED)
        self.settle(ref.request_id, Outcome(State.EXPIRED, b""), was_accepted=False)

    def close(self, ref: Ref[Any], state: str) -> None:
        self._post(functions.close(self._keys.request(ref.request_id), ref.request_id, state, b""), ignore)

    def change_epoch(self, epoch: str) -> None:
        """Continue with the broker's epoch; requests that were accepted in another one are lost."""
        if self.epoch.adopt(epoch):
            log.error("the broker has lost its data; %d open requests are lost with it", len(self._open))
            for request_id in list(self._open):
                self.settle(request_id, STATE_LOST, was_accepted=False)

    # -- messages ----------------------------------------------------------------------------------

    def receive(self, message: bytes) -> None:
        """Process one message: the end of a request, or an item of its result."""
        try:
            request_id, outcome = read_message(message)
        except PayloadError as error:  # whatever wrote it, the other requests must still get theirs
            log.warning("a message was dropped: %s", error)
            return
        refs = self._open.get(request_id)
        if refs is None:
            return  # settled before: a message that comes twice changes nothing
        if outcome.state != ITEM:
            self.settle(request_id, open_end(self._seal, request_id, outcome))
            return
        for ref in list(refs):
            if isinstance(ref, ItemRef):
                self._add_item(ref, outcome.payload)

    def _add_item(self, ref: ItemRef[Any], sealed: bytes) -> None:
        try:
            item = self._seal.open(item_context(ref.request_id, ref.received), sealed)
        except PayloadError as error:
            self.settle(ref.request_id, failed(error))
        else:
            ref.add(item)

    def read(self) -> Generator[Action, Any, None]:
        """Read the mailbox for ever; this does no I/O itself, so that threads and event loops share it.

        It yields a command, and must be sent the reply (an error reply as well), or thrown the error that ended the
        connection. Or it yields a number of seconds to sleep.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                if clock.is_due():
                    asked_at = time.monotonic()
                    clock.observe((yield ("TIME",)), asked_at)
                yield from self._catch_up()
                yield from self._read_messages()
                self._check_deadlines()
                if self._open and time.monotonic() - self._epoch_at > EPOCH_INTERVAL_S:
                    yield from self._check_epoch()
            except Exception as error:
                if isinstance(error, (*CLIENT_ERRORS, BrokerError, TimeoutError)):
                    log.debug("the mailbox cannot be read: %s", error)
                else:  # whatever it is, all callers of this process depend on this loop
                    log.exception("the mailbox cannot be read")
            else:
                pause_s = _FIRST_PAUSE_S
                continue
            self._was_lost = True
            self._check_deadlines()  # deadlines pass even while the broker is away
            yield pause_s
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    def _catch_up(self) -> Generator[Action, Any, None]:
        """After a lost connection, look up every open request: a message may have been popped for that connection."""
        if self._was_lost:
            yield from self._check_epoch()
            self._was_lost, self._stray_until = False, time.monotonic() + STRAY_READ_S
            self._watch_all()
        elif self._stray_until and time.monotonic() > self._stray_until:
            # once more when the read of the lost connection is certainly over in the broker
            self._stray_until = 0.0
            self._watch_all()

    def _read_messages(self) -> Generator[Action, Any, None]:
        ends, self._stream_ends = self._stream_ends, []
        found = _checked((yield self._command))
        messages = found[1] if found else ()
        for message in messages:
            self.receive(message)
        if len(messages) == _READ_COUNT:
            self._stream_ends += ends
            return
        # these were looked up before the mailbox was read, and it is empty now: their items have all arrived
        for request_id, outcome in ends:
            self.settle(request_id, outcome)

    def _check_epoch(self) -> Generator[Action, Any, None]:
        self._epoch_at = time.monotonic()
        found = _checked((yield ("GET", self.epoch.key)))
        self.change_epoch(found.decode() if found else "")

    # -- looking up requests -----------------------------------------------------------------------

    def watch(self, ref: Ref[Any], mailbox: str = "") -> None:
        """Ask the broker for the state of a request; an open one will be reported to ``mailbox``."""
        request = self._keys.request(ref.request_id)
        command = functions.watch(request, mailbox) if mailbox else functions.look(request)
        self._post(command, partial(self._on_watched, ref))

    def _watch_all(self) -> None:
        for refs in list(self._open.values()):
            for ref in list(refs):
                self.watch(ref)

    def _on_watched(self, ref: Ref[Any], reply: Any) -> None:
        found = read_found(reply)
        is_stored = found is not None and bool(found.state)
        if is_stored:
            ref.acceptance.set(True)
        outcome: Outcome | None
        if found is None:
            error = reply if isinstance(reply, BrokerError) else refusal(reply)
            outcome = None if isinstance(error, BrokerUnavailable) else failed(error)
        elif self._is_overdue(found):
            self.expire(ref)  # the process that submitted it may be gone, but its deadline still holds
            return
        elif not found.state and self._open.get(ref.request_id, {}).get(ref):
            # Ours, and lost with the server that accepted it, when that failed before its replica had it. Before it is
            # accepted, the question only came first: another thread has the ref, and its submission is on the way.
            outcome = STATE_LOST if ref.acceptance.is_set() else None
        else:
            outcome = outcome_of(found, self._seal, ref.request_id)
        if outcome is None:
            return
        if isinstance(ref, ItemRef) and outcome.state == State.DONE:
            self._stream_ends.append((ref.request_id, outcome))
        else:
            self.settle(ref.request_id, outcome, is_stored)

    def _is_overdue(self, found: Found) -> bool:
        try:
            return found.state == State.OPEN and is_late(open_header(self._seal, found.header).deadline_ms)
        except PayloadError:
            return False

    def _check_deadlines(self) -> None:
        """Expire the requests that are late, and look up those of other processes; each when that is due."""
        now = time.monotonic()
        if now - self._deadlines_at < DEADLINE_INTERVAL_S:
            return
        self._deadlines_at = now
        is_follow_due = now - self._follow_at >= FOLLOW_INTERVAL_S
        if is_follow_due:
            self._follow_at = now
        for refs in list(self._open.values()):
            for ref in list(refs):
                deadline_ms = refs.get(ref)
                if deadline_ms:
                    if is_late(deadline_ms):
                        self.expire(ref)
                elif is_follow_due:
                    self.watch(ref)


def ignore(reply: Any) -> None:
    """Do nothing with the reply to a command."""


def is_late(deadline_ms: int) -> bool:
    """Return whether a request that is still open should have been ended by now."""
    return deadline_ms + GRACE_MS < clock.judge_ms()


def _checked(reply: Any) -> Any:
    if isinstance(reply, Exception):
        raise refusal(reply)
    return reply


# -- what messages and replies mean ----------------------------------------------------------------


def read_message(message: bytes) -> tuple[str, Outcome]:
    """Return a message's request id, and its outcome or (in the state ``ITEM``) an item.

    A message is the id, one character for the state, and the payload.

    Raises:
      PayloadError: It is something else.
    """
    head = message[: REQUEST_ID_CHARS + 1]
    if not head.isascii() or head[REQUEST_ID_CHARS:] not in _STATES:
        raise PayloadError(f"{len(message)} bytes are not a mailbox message")
    text = head.decode()
    return text[:-1], Outcome(text[-1], message[REQUEST_ID_CHARS + 1 :])


def outcome_of(found: Found, seal: Seal, request_id: str) -> Outcome | None:
    """Return how a request ended; None while it is open."""
    if found.state == State.OPEN:
        return None
    return open_end(seal, request_id, Outcome(found.state, found.payload)) if found.state else not_found(request_id)


def refused(reply: Any) -> Outcome | None:
    """Return why ``submit`` refused a request; None if the request was accepted, now or by an earlier sending."""
    if failpoints.ARMED:
        failpoints.hit("submit.after_send")
    if reply in ACCEPTED:
        return None
    if isinstance(reply, list):
        return full(reply[1])
    if isinstance(reply, bytes) and reply in _REFUSALS:
        return _REFUSALS[reply]
    return failed(reply if isinstance(reply, BrokerUnavailable) else refusal(reply))


def not_found(request_id: str) -> Outcome:
    """Return the outcome of a request that the broker does not know."""
    if is_genuine(request_id):
        what = f"the result of request {request_id} is no longer stored: it is kept for QSERVE_RESULT_TTL_S seconds"
    else:
        what = f"request {request_id} is not known: its result has expired, or it never existed"
    return failed(ResultUnavailable(what))


def full(after_s: int) -> Outcome:
    """Return the outcome of a request that found a queue at its limit, which is worth another try after so long."""
    what = "Request dropped due to backpressure: as many requests as allowed are waiting"
    return failed(BackPressureError(what, after_s))


ARGUMENT_LOST = failed(ResultUnavailable("an argument's result is no longer stored"))
STATE_LOST = failed(BrokerStateLost("the broker has lost its data, and this request with it: send it again"))
_REFUSALS: dict[bytes, Outcome] = {
    Reply.MISMATCH: failed(IdempotencyMismatch("this Idempotency-Key was used for another request")),
    Reply.MOVED: failed(AppNotFound("the application's queues are gone: it was deleted or replaced")),
    Reply.LOST: ARGUMENT_LOST,
    NOT_REPLICATED: failed(NotReplicated("no replica of the broker received this request in time; send it again")),
}
