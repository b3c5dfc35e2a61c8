"""What sync code's plane and a replica's plane have in common: requests from their submission to their end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from qserve.base.clock import clock
from qserve.base.keys import Keys
from qserve.base.log import get_logger
from qserve.base.settings import Settings
from qserve.broker import functions
from qserve.broker.functions import NOT_REPLICATED, KnownEpoch, other_epoch
from qserve.broker.library import Command
from qserve.calls.compose import Composer, Submission
from qserve.calls.pending import LATE_MS, Pending
from qserve.calls.ref import Call, ItemRef, Ref
from qserve.calls.replies import MOVED, read_reply, refused, state_lost, was_known
from qserve.exceptions import PayloadError
from qserve.wire.application import ApplicationRecord
from qserve.wire.codec import Codec
from qserve.wire.outcome import Outcome, State
from qserve.wire.sealing import Seal, open_header

log = get_logger(__name__)
_OPEN_PARTS = 3
"""What ``watch`` gives of an open request: state, nothing, header."""


class Submitter(ABC):
    """Submits requests for one process and keeps their refs until they have ended.

    Parameters:
      settings: Defaults for deadlines and the life of results.
      keys: The installation's key names.
      codec: Encodes arguments.
      mailbox: Where the ends of requests are reported.
      find: Gives an application's record by its name; raises AppNotFound.
    """

    owns_results = False
    """Whether every result is dropped when its ref is: code in a replica keeps refs for as long as it wants them."""

    def __init__(
        self, settings: Settings, keys: Keys, codec: Codec, mailbox: str, find: Callable[[str], ApplicationRecord]
    ) -> None:
        self.settings = settings
        self.keys = keys
        self.codec = codec
        self.epoch = KnownEpoch(keys)
        self._mailbox = mailbox
        self._composer = Composer(settings, keys, codec, find)
        self.seal = Seal(settings.keyring)
        self._pending = Pending(self.seal)
        self._forgotten: list[str] = []

    @abstractmethod
    def post(self, command: Command, on_reply: Callable[[Any], None]) -> None:
        """Send a command; it may be sent again when its reply is lost."""

    @abstractmethod
    def wait(self, ref: Ref, timeout_s: float | None) -> bool:
        """Block until ``ref`` is done; False when ``timeout_s`` passed first."""

    # -- the Plane ---------------------------------------------------------------------------------

    def submit(self, call: Call) -> Ref[Any]:
        """Start a call."""
        submission = self._composer.compose(call)
        kind = ItemRef if call.stream else Ref
        ref = kind(submission.request_id, self, self.owns_results or call.owned)
        self._send_submission(ref, submission, lambda: self._move(ref, call))
        return ref

    def follow(self, ref: Ref) -> None:
        """Have this process told when ``ref``, which may come from elsewhere, is done."""
        if ref.done.is_set() or ref in self._pending:
            return
        self._expect(ref)
        self._look_at(ref, self._mailbox)

    def cancel(self, ref: Ref) -> None:
        """End an open request without a result; running code goes on, its effects are dropped."""
        self._close(ref, State.CANCELLED)

    def expire(self, ref: Ref) -> None:
        """End a request whose deadline passed while its caller waited."""
        self._close(ref, State.EXPIRED)
        self._pending.settle(ref.request_id, Outcome(State.EXPIRED, b""))

    def add_credit(self, request_id: str, items: int) -> None:
        """Let the producer of a streamed result send this many more items."""
        self.post(functions.take(self.keys.request(request_id), items), ignore)

    def release(self, request_id: str) -> None:
        """Drop a result that nobody will ask for again; sent along with what leaves next."""
        self._forgotten.append(self.keys.request(request_id))

    def _close(self, ref: Ref, state: str) -> None:
        self.post(functions.close(self.keys.request(ref.request_id), ref.request_id, state, b""), ignore)

    # -- submitting --------------------------------------------------------------------------------

    def _send_submission(self, ref: Ref, submission: Submission, on_moved: Callable[[], None]) -> None:
        if submission.outcome is not None:
            ref.settle(submission.outcome)
            return

        self._expect(ref, submission.deadline_ms)
        command = submission.command(self._mailbox, self.epoch.current(), self.seal)
        # no closure that refers to itself: the request, with its body, could be freed only by the garbage collector
        self.post(command, lambda reply: self._on_submitted(ref, submission, on_moved, reply))

    def _on_submitted(self, ref: Ref, submission: Submission, on_moved: Callable[[], None], reply: Any) -> None:
        epoch = other_epoch(reply)
        if epoch is not None:
            self._send_again(ref, epoch, lambda: self._send_submission(ref, submission, on_moved))
        elif reply == MOVED:
            on_moved()
        else:
            self._take_reply(ref, reply)

    def _take_reply(self, ref: Ref, reply: Any) -> None:
        if was_known(reply):
            ref.accepted.set(True)
            self._pending.follow(ref)
            outcome = read_reply(reply, self.seal, ref.request_id)
        else:
            outcome = refused(reply)
        if outcome is not None:
            self._pending.refuse(ref, outcome)
        if reply == NOT_REPLICATED:  # its caller will send another in its place, maybe with the same key
            self.cancel(ref)
            self.release(ref.request_id)
        ref.accepted.set(True)  # without effect on one that was refused: its end came first

    def _expect(self, ref: Ref, deadline_ms: int = 0) -> None:
        self._pending.add(ref, deadline_ms)

    def _move(self, ref: Ref, call: Call) -> None:
        """The version that was called has been retired: nothing was accepted."""
        outcome = refused(MOVED)
        assert outcome is not None
        self._pending.refuse(ref, outcome)

    # -- an epoch that is another one --------------------------------------------------------------

    def _send_again(self, ref: Ref, epoch: str, send: Callable[[], None]) -> None:
        """A submission was refused because of the broker's epoch: nothing of it was accepted."""
        self._pending.drop(ref)
        self.adopt(epoch)
        if ref.done.is_set():
            return
        if epoch:
            send()
        else:
            ref.settle(state_lost())

    def adopt(self, epoch: str) -> None:
        """Go on with the broker's epoch; what was accepted before it is lost, and its callers are told."""
        if self.epoch.adopt(epoch):
            log.error("the broker has lost its data; %d requests that were waiting are lost", len(self._pending))
            self._pending.settle_all(state_lost())

    # -- the mailbox -------------------------------------------------------------------------------

    def _watch_all(self, refs: Sequence[Ref]) -> None:
        for ref in refs:
            self._look_at(ref)

    def _look_at(self, ref: Ref, mailbox: str = "") -> None:
        on_watched = self._pending.on_watched(ref)

        def on_reply(reply: Any) -> None:
            if is_overdue(reply, self.seal):  # whoever submitted it may be gone: its deadline holds all the same
                self.expire(ref)
            else:
                on_watched(reply)

        self.post(functions.watch(self.keys.request(ref.request_id), mailbox), on_reply)

    def _catch_up(self) -> None:
        # a reply may have been popped for a connection that was lost: the result itself is still stored
        self._watch_all(self._pending.refs())

    def _look_after(self) -> None:
        late, foreign = self._pending.due()
        for ref in late:
            self.expire(ref)
        self._watch_all(foreign)


def is_late(deadline_ms: float) -> bool:
    """Whether a request that is open still should have been ended by now."""
    return deadline_ms + LATE_MS < clock.judge_ms()


def is_overdue(reply: Any, seal: Seal) -> bool:
    """Whether ``watch`` found a request open past its deadline."""
    if not isinstance(reply, list) or reply[0] != State.OPEN.encode() or len(reply) < _OPEN_PARTS:
        return False
    try:
        return is_late(open_header(seal, reply[2]).deadline_ms)
    except PayloadError:
        return False


def ignore(reply: Any) -> None:
    """For commands whose answer changes nothing."""
