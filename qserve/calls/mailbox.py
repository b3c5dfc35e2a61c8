"""The mailbox of a process: the refs that are still open, and the messages and replies that settle them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from math import ceil
from typing import Any, Final

from qserve.base import failpoints
from qserve.base.clock import Clock, clock
from qserve.base.keys import Keys
from qserve.base.log import get_logger
from qserve.base.turns import Turns
from qserve.broker import functions
from qserve.broker.connection import (
    CLIENT_ERRORS,
    CROWDED,
    LONGEST_PAUSE_S,
    MAILBOX_BLOCK_S,
    STRAY_READ_S,
    process_name,
    refusal,
)
from qserve.broker.functions import ACCEPTED, NOT_REPLICATED, Reply, read_found
from qserve.broker.library import Command
from qserve.broker.link import OnReply
from qserve.calls.items import ItemRef
from qserve.calls.ref import Ref, failed
from qserve.exceptions import (
    AppNotFound,
    BackPressureError,
    BrokerError,
    BrokerFull,
    BrokerStateLost,
    BrokerUnavailable,
    IdempotencyMismatch,
    NotReplicated,
    PayloadError,
    ResultUnavailable,
    WrongType,
)
from qserve.wire import replies
from qserve.wire.application import DeploymentRecord
from qserve.wire.moves import Epoch
from qserve.wire.outcome import ANNOUNCED, ITEM, OBSERVED, TOLD, Outcome, State, items_in
from qserve.wire.replies import Found
from qserve.wire.request_ids import is_genuine
from qserve.wire.sealing import Seal, item_context, open_end, open_header

log: Final = get_logger(__name__)

GRACE_MS = 200
"""How long after its deadline a request is ended from here; its last step or its caller normally does so before."""
DEADLINE_INTERVAL_S = 0.25
"""How often the deadlines of the open refs are checked."""
FOLLOW_INTERVAL_S = 1.0
"""How often the broker is asked about requests that this process did not submit."""
EPOCH_INTERVAL_S = 1.0
"""How often the broker is asked, while refs are open, whether it has lost its data."""

ASK_INTERVAL_S = 5.0
"""How often the broker is asked about the requests that are open for so long: their messages may have been lost."""
CLOSING_MS = 1000
"""How long the broker may take to say how a request has ended whose deadline has passed."""

_FOR_REPLICAS = frozenset((OBSERVED, TOLD))
QUIET_READS = 4
"""After so many reads in a row without a message, while nothing is open, an idle mailbox reads for longer."""
_READ_COUNT, _READ_FEW = 256, 4
_LARGE_BATCH = 1 << 20
"""After messages of so many bytes together only a few are read at a time: the others wait in the broker."""
_FIRST_PAUSE_S = 0.05

STOPPED = (State.CANCELLED, State.EXPIRED)
"""The states in which the code of a request has to stop."""
Action = Command | float
Post = Callable[[Command, OnReply], None]


def ignore(reply: Any) -> None:
    """Do nothing with the reply to a command."""


def _ignore_told(request_id: str, sealed: bytes) -> None:
    """Drop what was told to another process of this name."""


class Mailbox:
    """Holds the open refs of one process and settles them; other threads may add and remove refs meanwhile.

    A request can have several refs: a call with an idempotency key that was used before follows the first one.

    Parameters:
      seal: Opens the messages.
      post: Sends a command, and calls back with its reply.
      is_quiet: Whether another part of this process logs that the broker is away.
      counts: Whether long results are only announced: the outcome is in the state ``ANNOUNCED`` then.
      process: Names the mailbox; "" for a new name.
      clock: Follows the clock of the broker.
    """

    def __init__(
        self,
        keys: Keys,
        seal: Seal,
        post: Post,
        is_quiet: bool = False,
        counts: bool = False,
        process: str = "",
        clock: Clock = clock,
    ) -> None:
        self._clock = clock
        self.name: str = keys.mailbox(process or process_name(), counts)
        self._counting = self.name if counts else ""
        self.epoch: Final = Epoch(keys.epoch)
        self._on_their_way: dict[str, float] = {}
        self._on_ended: Callable[[str, str], None] | None = None
        self._on_gap: Callable[[], object] = bool  # does nothing
        self._on_reader: Callable[[str], object] = bool
        self._on_told: Callable[[str, bytes], object] = _ignore_told
        self._keys = keys
        self._seal = seal
        self._post = post
        # by request id: each ref with its deadline, which is 0 for a request that another process submitted
        self._open: dict[str, dict[Ref[Any], int]] = {}
        self._stream_ends: list[tuple[str, Outcome]] = []
        self._closing: set[str] = set()
        self._open_before: set[str] = set()
        self._read_count = _READ_COUNT
        self._was_lost = False
        self._idle_block_s = self._block_s = MAILBOX_BLOCK_S
        self._quiet = 0
        self._turns = Turns(
            "reading the mailbox", log, first_s=_FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S, is_quiet=is_quiet
        )
        self._deadlines_at = self._follow_at = self._look_at = self._epoch_at = self._stray_until = 0.0

    def __contains__(self, ref: Ref[Any]) -> bool:
        return ref in self._open.get(ref.request_id, ())

    def report_ends(
        self,
        on_ended: Callable[[str, str], None],
        on_gap: Callable[[], object],
        on_reader: Callable[[str], object],
        on_told: Callable[[str, bytes], object] = _ignore_told,
    ) -> None:
        """Call ``on_ended`` with the request and its state when one was cancelled or has expired: it may run here.

        ``on_gap`` is called when such messages may have been lost, and ``on_reader`` with a request that somebody
        begins to follow; ``on_told`` with the request of a WebSocket and a sealed part of what its client has sent.
        """
        self._on_ended, self._on_gap, self._on_reader, self._on_told = on_ended, on_gap, on_reader, on_told

    def read_long(self, idle_block_s: float) -> None:
        """Let a read take so long while nothing is open.

        The caller has to end a read that ``reads_long`` when something is opened: deadlines are checked between reads.
        """
        self._idle_block_s = idle_block_s

    @property
    def reads_long(self) -> bool:
        """Whether the read that is under way takes longer than usual."""
        return self._block_s > MAILBOX_BLOCK_S

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
        self._closing.discard(request_id)
        for ref in list(self._open.pop(request_id, ())):
            ref.settle(_whole(ref, outcome) if isinstance(ref, ItemRef) else outcome, was_accepted)

    def settle_all(self, outcome: Outcome) -> None:
        """Settle all refs that are open."""
        for request_id in list(self._open):
            self.settle(request_id, outcome, was_accepted=False)

    def expect_unknown(self, requests: Sequence[str], for_s: float) -> None:
        """Wait for requests that another process is about to submit, although the broker does not know them yet."""
        self._on_their_way = dict.fromkeys(requests, time.monotonic() + for_s)

    def submitted(self) -> list[Ref[Any]]:
        """Return the open refs of requests that this process has submitted."""
        return [ref for refs in list(self._open.values()) for ref, deadline_ms in list(refs.items()) if deadline_ms]

    def expire(self, ref: Ref[Any]) -> None:
        """End a request whose deadline has passed, here and in the broker, unless it has ended there before."""
        self._closing.add(ref.request_id)
        self.close(ref, State.EXPIRED, partial(self._on_expired, ref))

    def _on_expired(self, ref: Ref[Any], reply: Any) -> None:
        if reply == 0:  # it had ended, and the message was lost
            self.watch(ref)
        else:
            self.settle(ref.request_id, EXPIRED, was_accepted=reply == 1)

    def close(self, ref: Ref[Any], state: str, on_reply: OnReply = ignore) -> None:
        command = functions.end(self._seal, self._keys.request(ref.request_id), ref.request_id, state)
        self._post(command, on_reply)

    def change_epoch(self, epoch: str | bytes) -> None:
        """Continue with the broker's epoch; requests that were accepted in another one are lost."""
        if self.epoch.adopt(epoch):
            log.error("the broker has lost its data; %d open requests are lost with it", len(self._open))
            self.settle_all(STATE_LOST)

    # -- messages ----------------------------------------------------------------------------------

    def receive(self, message: bytes) -> None:
        """Process one message: the end of a request, or an item of its result."""
        try:
            request_id, outcome = replies.message(message)
        except PayloadError as error:  # the other requests must still get their messages
            replies.warn_once(f"a message was dropped: {error}")
            return
        refs = self._open.get(request_id)
        if outcome.state in _FOR_REPLICAS:
            if outcome.state == TOLD:
                self._on_told(request_id, outcome.payload)
            else:
                self._on_reader(request_id)
            return
        if refs is None and (self._on_ended is None or outcome.state not in STOPPED):
            return  # settled before: a message that comes twice changes nothing
        if refs is None or outcome.state != ITEM:
            end = _opened(self._seal, request_id, outcome)
            if end.state in STOPPED and self._on_ended is not None:
                self._on_ended(request_id, end.state)
            self.settle(request_id, end)
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
        """Read the mailbox without end; this does no I/O itself, so that threads and event loops share it.

        It yields a command, and must be sent the reply (an error reply as well), or thrown the error that ended the
        connection. Or it yields a number of seconds to sleep. All callers of a process depend on this loop, so no
        error ends it.
        """
        while True:
            try:  # not by ``with``: this is on the way of every request
                self._check_deadlines()  # first: deadlines pass even while the broker is away
                try:
                    yield from self._read_once()
                except CLIENT_ERRORS as error:
                    if isinstance(error, BrokerError):
                        raise
                    raise BrokerUnavailable(f"the broker cannot be reached: {error}") from error
            except Exception as error:
                self._turns.note(error)
                self._was_lost = True
                yield self._turns.pause_s
            else:
                if self._turns.failures:
                    self._turns.recover()

    def _read_once(self) -> Generator[Action, Any, None]:
        if self._clock.is_due():
            asked_at = time.monotonic()
            self._clock.observe(replies.time_s((yield ("TIME",))), asked_at)
        yield from self._catch_up()
        yield from self._read_messages()
        if self._open and time.monotonic() - self._epoch_at > EPOCH_INTERVAL_S:
            yield from self._check_epoch()

    def _catch_up(self) -> Generator[Action, Any, None]:
        """After a lost connection, look up every open request: a message may have been popped for that connection."""
        if self._was_lost:
            yield from self._check_epoch()
            self._was_lost, self._stray_until = False, time.monotonic() + self._block_s + STRAY_READ_S
            self._watch_all()
        elif self._stray_until and time.monotonic() > self._stray_until:
            # once more when the read of the lost connection is certainly over in the broker
            self._stray_until = 0.0
            self._watch_all()

    def _read_messages(self) -> Generator[Action, Any, None]:
        ends, self._stream_ends = self._stream_ends, []
        self._block_s = self._idle_block_s  # first: whoever opens something after the next line ends this read
        if self._quiet < QUIET_READS or self._open or self._stray_until:
            self._block_s = MAILBOX_BLOCK_S
        try:
            command = ("BLMPOP", str(self._block_s), 1, self.name, "LEFT", "COUNT", self._read_count)
            found = _checked((yield command))
        except WrongType as error:
            # nothing in there is a message, and those that should have come are stored with their requests
            replies.warn_once(f"the mailbox of this process was overwritten, and is created again: {error}")
            _checked((yield ("DEL", self.name)))
            self._watch_all()
            return
        messages = found[1] if found else ()
        self._quiet = 0 if messages or self._open else self._quiet + 1
        for message in messages:
            self.receive(message)
        is_full = len(messages) == self._read_count
        self._read_count = _READ_FEW if sum(map(len, messages)) > _LARGE_BATCH else _READ_COUNT
        if is_full:
            self._stream_ends += ends
            return
        # these were looked up before the mailbox was read, and it is empty now: their items have all arrived
        for request_id, outcome in ends:
            self.settle(request_id, outcome)

    def _check_epoch(self) -> Generator[Action, Any, None]:
        self._epoch_at = time.monotonic()
        try:
            self.change_epoch(replies.epoch(_checked((yield ("GET", self.epoch.key)))))
        except WrongType as error:  # each submission is refused for it, and what was accepted goes on
            replies.warn_once(f"the epoch cannot be read: {error}")

    # -- looking up requests -----------------------------------------------------------------------

    def watch(self, ref: Ref[Any], mailbox: str = "", on_reply: OnReply = ignore) -> None:
        """Ask the broker for the state of a request; an open one will be reported to ``mailbox``.

        Parameters:
          on_reply: Called after the reply has been taken in.
        """

        def take_in(reply: Any) -> None:
            try:
                self._on_watched(ref, reply)
            finally:
                on_reply(reply)

        request = self._keys.request(ref.request_id)
        self._post(functions.watch(request, mailbox) if mailbox else functions.look(request, self._counting), take_in)

    def _watch_all(self) -> None:
        self._turns.attempt("the calls that run", self._on_gap)
        for refs in list(self._open.values()):
            for ref in list(refs):
                self._turns.attempt(f"request {ref.request_id}", self.watch, ref)

    def _on_watched(self, ref: Ref[Any], reply: Any) -> None:
        found = read_found(reply)
        is_stored = found is not None and bool(found.state)
        if is_stored:
            ref.acceptance.set(True)
        outcome: Outcome | None
        if found is None:
            error = refusal(reply)
            outcome = None if isinstance(error, BrokerUnavailable) else failed(error)
        elif self._is_overdue(found):
            self.expire(ref)  # the process that submitted it may be gone, but its deadline still holds
            return
        elif not found.state and self._open.get(ref.request_id, {}).get(ref):
            # Ours, and lost with the server that accepted it, when that failed before its replica had it. Before it is
            # accepted, the question only came first: another thread has the ref, and its submission is on the way.
            outcome = STATE_LOST if ref.acceptance.is_set() else None
        elif not found.state and time.monotonic() < self._on_their_way.get(ref.request_id, 0.0):
            return
        else:
            outcome = outcome_of(found, self._seal, ref.request_id)
        if outcome is None:
            return
        if isinstance(ref, ItemRef) and outcome.state == State.DONE and items_in(outcome.payload) != ref.received:
            self._stream_ends.append((ref.request_id, outcome))
        else:
            self.settle(ref.request_id, outcome, is_stored)

    def _is_overdue(self, found: Found) -> bool:
        try:
            return found.state == State.OPEN and is_late(open_header(self._seal, found.header).deadline_ms, self._clock)
        except PayloadError:
            return False

    def _check_deadlines(self) -> None:
        """Expire the requests that are late, and look up those that may have ended; each when that is due."""
        now = time.monotonic()
        if now - self._deadlines_at < DEADLINE_INTERVAL_S:
            return
        self._deadlines_at = now
        is_follow_due = now - self._follow_at >= FOLLOW_INTERVAL_S
        if is_follow_due:
            self._follow_at = now
        long_open: set[str] = set()
        if now - self._look_at >= ASK_INTERVAL_S:
            self._look_at = now
            long_open, self._open_before = self._open_before, set(self._open)
        for request_id, refs in list(self._open.items()):
            for ref, deadline_ms in list(refs.items()):
                if deadline_ms and is_late(deadline_ms, self._clock):
                    self._turns.attempt(f"request {request_id}", self._end_late, ref, deadline_ms)
                elif request_id in long_open if deadline_ms else is_follow_due:
                    self._turns.attempt(f"request {request_id}", self.watch, ref)

    def _end_late(self, ref: Ref[Any], deadline_ms: int) -> None:
        if is_late(deadline_ms + CLOSING_MS, self._clock):  # the broker does not say
            self.settle(ref.request_id, EXPIRED, was_accepted=False)
        elif ref.request_id not in self._closing:
            self.expire(ref)


def is_late(deadline_ms: int, clock: Clock = clock) -> bool:
    """Return whether a request that is still open should have been ended by now."""
    return deadline_ms + GRACE_MS < clock.judge_ms()


def _checked(reply: Any) -> Any:
    if isinstance(reply, Exception):
        raise refusal(reply)
    return reply


# -- what messages and replies mean ----------------------------------------------------------------


def outcome_of(found: Found, seal: Seal, request_id: str) -> Outcome | None:
    """Return how a request ended; None while it is open."""
    if found.state == State.OPEN:
        return None
    return _opened(seal, request_id, Outcome(found.state, found.payload)) if found.state else not_found(request_id)


def _opened(seal: Seal, request_id: str, outcome: Outcome) -> Outcome:
    return outcome if outcome.state == ANNOUNCED else open_end(seal, request_id, outcome)


def refused(reply: Any, limited: DeploymentRecord | None) -> Outcome | None:
    """Return why ``submit`` refused a request; None if the request was accepted, now or by an earlier sending.

    Parameters:
      limited: The deployment whose options say how a full queue refuses a call.
    """
    if failpoints.ARMED:
        failpoints.hit("submit.after_send")
    if reply in ACCEPTED:
        return None
    if isinstance(reply, list):
        return full(limited, reply[1])
    if isinstance(reply, bytes) and reply in _REFUSALS:
        return _REFUSALS[reply]
    return failed(refusal(reply))


def not_found(request_id: str) -> Outcome:
    """Return the outcome of a request that the broker does not know."""
    if is_genuine(request_id):
        what = f"the result of request {request_id} is no longer stored: it is kept for QSERVE_RESULT_TTL_S seconds"
    else:
        what = f"request {request_id} is not known: its result has expired, or it never existed"
    return failed(ResultUnavailable(what))


def full(limited: DeploymentRecord | None, after_s: int) -> Outcome:
    """Return the outcome of a request that found a queue at its limit, which is worth another try after so long."""
    what = "Request dropped due to backpressure: as many requests as allowed are waiting"
    if limited is None:
        return failed(BackPressureError(what, after_s))
    chosen_s = limited.full_retry_after_s
    return failed(BackPressureError(what, after_s if chosen_s is None else ceil(chosen_s), limited.full_status))


def _whole(ref: ItemRef[Any], outcome: Outcome) -> Outcome:
    """Return the end of a stream; a failure when not all of its items have arrived."""
    count = items_in(outcome.payload) if outcome.state == State.DONE else None
    if count is None or count == ref.received:
        return outcome
    return failed(PayloadError(f"{ref.received} of the {count} items of request {ref.request_id} have arrived"))


EXPIRED = Outcome(State.EXPIRED, b"")
ARGUMENT_LOST = failed(ResultUnavailable("an argument's result is no longer stored"))
STATE_LOST = failed(BrokerStateLost("the broker has lost its data, and this request with it: send it again"))
HOOKED = f"{functions.WEBHOOKS_LIMIT} webhooks are not delivered yet: more are accepted when some of these are"
BROKER_STOPPED = failed(BrokerUnavailable("this program has stopped its broker, and the request with it"))
_REFUSALS: dict[bytes, Outcome] = {
    Reply.CROWDED: failed(BrokerFull(CROWDED)),
    Reply.HOOKED: failed(BrokerFull(HOOKED)),
    Reply.MISMATCH: failed(IdempotencyMismatch("this Idempotency-Key was used for another request")),
    Reply.MOVED: failed(AppNotFound("the application's queues are gone: it was deleted or replaced")),
    Reply.LOST: ARGUMENT_LOST,
    NOT_REPLICATED: failed(NotReplicated("no replica of the broker received this request in time; send it again")),
}
