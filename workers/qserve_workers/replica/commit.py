"""End calls: commit them, fail them, retry them later, or keep them as dead letters; by one command each."""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from qserve.base import failpoints
from qserve.base.clock import clock
from qserve.base.context import request_context
from qserve.base.keys import CLOCK_MARGIN_MS, GROUP
from qserve.base.log import get_logger, of_request
from qserve.broker import functions
from qserve.broker.functions import Reply, other_epoch
from qserve.broker.library import Command
from qserve.broker.link import OnReply
from qserve.calls.mailbox import ignore
from qserve.calls.progress import happened
from qserve.engine.report import log_failure
from qserve.engine.step import Conclusion
from qserve.engine.streaming import SessionSink, Sink
from qserve.exceptions import BrokerError, PayloadError, ValueLost, ValueUnreachable
from qserve.wire import replies
from qserve.wire.envelope import Answer
from qserve.wire.events import Happening
from qserve.wire.failure import Failure
from qserve.wire.outcome import SESSION, CallField, State
from qserve.wire.sealing import seal_end, seal_moves
from qserve_workers.replica.emitter import Collector, Emitter
from qserve_workers.replica.metrics import CallMetrics
from qserve_workers.replica.plane import LoopPlane
from qserve_workers.replica.reader import Delivery, Tag, Work
from qserve_workers.replica.session import SessionWire
from qserve_workers.replica.spec import ReplicaSpec

log = get_logger(__name__)
access_log = get_logger("qserve.access")
HISTORY_CHARS = 200
"""How much of an error's text goes into the history of its call."""
POSTPONED = "postponed"
"""Stands in the place of a state for a call that is going to be tried again."""
_ENDS = {State.FAILED: "ERROR", State.CANCELLED: "CANCELLED", State.EXPIRED: "EXPIRED", POSTPONED: "RETRIED"}
_DONE = ("", State.DONE)
LONGEST_WAIT_S = 60.0
"""The longest wait before another try."""


class Committer:
    """Ends the calls of one replica; the ``Backend`` of its ``Invoker``.

    Parameters:
      on_end: Called when a call has ended here; the broker's reply may still be on its way.
      on_settled: Called when the broker has acknowledged a delivery, or put it back.
      metrics: Counts the calls; None where nothing is counted.
    """

    def __init__(
        self,
        spec: ReplicaSpec,
        plane: LoopPlane,
        *,
        on_end: Callable[[Work], None],
        on_settled: Callable[[Tag], None],
        metrics: CallMetrics | None = None,
    ) -> None:
        self._spec = spec
        self._plane = plane
        self._keys = plane.keys
        self._on_end = on_end
        self._on_settled = on_settled
        self._metrics = metrics
        self.sessions: dict[str, SessionWire] = {}
        """The WebSockets that are open here, by their requests."""
        self.watcher: Callable[[Work, str, bytes], None] | None = None
        """Called with the end of each call, and its result or failure; None as long as nobody wants to know."""

    # -- what an Invoker asks for ------------------------------------------------------------------

    def values(self, work: Work) -> Sequence[bytes]:
        return work.values(self._plane.seal)

    def sink(self, work: Work) -> Sink | None:
        if work.header.stream:
            return Emitter(self._plane, work.header)
        return None if work.header.answer is Answer.VALUE else Collector(self._plane, work.header)

    def wire(self, work: Work) -> SessionSink:
        return SessionWire(self._plane, work.header, self.sessions, self._spec.settings.request_timeout_s)

    def flush(self) -> None:
        self._plane.flush()

    def commit(self, work: Work, conclusion: Conclusion) -> None:
        """Publish the effects of a call.

        Crash before this is sent: the call is pending and runs again elsewhere. Crash after: it has moved on.
        """
        if self.watcher is not None:
            self.watcher(work, conclusion.state, conclusion.payload)
        now = 0.0 if self._metrics is None else time.monotonic()
        try:
            self._post_commit(work, conclusion, now)
        except Exception as error:  # a fault of ours: without an end the request would wait for its deadline
            self._post_commit(work, self._failed(work, error, "cannot be committed"), now)
        self._on_end(work)
        if access_log.isEnabledFor(logging.INFO):
            _log_end(work, conclusion.state)

    def fail(self, work: Work, error: BaseException) -> None:
        """End a call whose code raised: it is tried again, or its request fails."""
        options, tries = self._spec.options, work.tries
        if self._metrics is not None:
            self._metrics.count_error(work, error)
        if not options.max_retries or work.step == SESSION or not self._is_worth_retries(error):
            self.commit(work, self._failed(work, error, "failed"))
        elif tries < options.max_retries:
            # full waits would bring the calls that failed together back together
            wait_s = min(LONGEST_WAIT_S, options.retry_backoff_s * 2.0**tries) * random.uniform(0.5, 1.5)
            self._postpone(work, error, wait_s, tries + 1)
        else:
            self._dead_letter(work, "retries", error)

    def _is_worth_retries(self, error: BaseException) -> bool:
        listed = self._spec.options.retry_on
        return isinstance(error, Exception) and (
            listed is None or any(kind.__qualname__ in listed for kind in type(error).__mro__)
        )

    def reject(self, work: Work, error: BaseException) -> None:
        """Keep a call whose arguments cannot be read as a dead letter, and fail its request.

        A value that is lost makes no dead letter: no replay would find it again.
        """
        if isinstance(error, ValueLost | ValueUnreachable):
            self.commit(work, self._failed(work, error, "lacks one of its values"))
        else:
            self._dead_letter(work, "unreadable", error)

    # -- deliveries that do not run ----------------------------------------------------------------

    def give_back(self, work: Work) -> None:
        """Put a delivery back that would have to wait here for a call that may kill this replica.

        Crash before this is sent: the delivery is handed over, with a death that was not its own.
        """
        tag = work.tag
        command = functions.give_back(tag.stream, self._spec.stream, [tag.entry_id], self._keys.request(""))
        self._post_end(work, command)

    def dead_letter_unread(self, delivery: Delivery, error: Exception) -> None:
        """Keep a delivery that cannot be read as a dead letter.

        Only its first bytes tell which request it belongs to. Where they name no open request, it gets an id of its
        own among the dead letters.
        """
        failure = Failure.of(PayloadError(f"a message of {self._spec.deployment!r} cannot be read: {error}"))
        tag, claimed = delivery.tag, replies.claimed_id(delivery.fields.get(CallField.HEADER, b""))
        text = "moved an unreadable message of queue %s to the dead letters: %s"
        log.error(text, self._spec.stream, error, extra=of_request(claimed))
        sealed = seal_end(self._plane.seal, claimed, State.FAILED, failure.encode())
        command = functions.dead_letter(
            tag.stream, self._keys.request(claimed), tag.entry_id, claimed, "unreadable", sealed, self._spec.name,
            failure.message[:HISTORY_CHARS], is_known=False,
        )  # fmt: skip

        def on_reply(reply: Any) -> None:
            if isinstance(reply, BrokerError):
                log.error("could not store that message as a dead letter; dropping it: %s", reply)
                self._drop(tag)
            self._on_settled(tag)

        self._plane.post(command, on_reply)

    # -- commands ----------------------------------------------------------------------------------

    def commit_command(self, work: Work, conclusion: Conclusion) -> Command:
        """Return what commits a call; it may be sent over any connection."""
        tag, request_id, seal = work.tag, work.header.request_id, self._plane.seal
        moves = seal_moves(seal, request_id, conclusion.moves)
        return functions.commit(
            tag.stream, self._keys.request(request_id), tag.entry_id, request_id, self._plane.epoch,
            tag.entry_id, work.step, moves, conclusion.state,
            seal_end(seal, request_id, conclusion.state, conclusion.payload),
            self._event(work, Happening.DONE) if work.is_observed and conclusion.state in _DONE else b"",
            conclusion.uses() if conclusion.made or conclusion.spent else functions.NO_VALUES,
        )  # fmt: skip

    def _event(self, work: Work, what: Happening) -> bytes:
        """Return what those who follow the request read of the end of a call."""
        (run,) = work.request().runs
        return self._plane.sealed(run.request_id, happened(what, run))

    def _post_commit(self, work: Work, conclusion: Conclusion, posted: float) -> None:
        def on_reply(reply: Any) -> None:
            if failpoints.ARMED:
                failpoints.hit("commit.after_send")
            if work.span is not None and reply in (Reply.OK, Reply.DUP):
                work.span.settled(conclusion.outcome, True, conclusion.sends(self._keys, work.header.app))
            if reply in (Reply.OK, Reply.DUP):  # the reply to the first may have been lost
                self._on_settled(work.tag)
                if self._metrics is not None:
                    has_failed = conclusion.state == State.FAILED
                    self._metrics.count(work, has_failed, posted, conclusion.state, time.monotonic() - posted)
                return
            epoch = other_epoch(reply)
            if epoch is not None:
                self._plane.mailbox.change_epoch(epoch)
                # the call may be of either epoch: where it is not of this one, its entry is gone and so is its effect
                self._post_commit(work, conclusion, posted)
            elif reply == Reply.BADKEY:
                error = BrokerError(f"a queue that {work.step!r} leads to is not a stream: its key was overwritten")
                self._post_commit(work, self._failed(work, error, "failed"), posted)
            else:
                self._on_other_reply(work, conclusion, posted, reply)

        if failpoints.ARMED:
            failpoints.hit("commit.before_send")
        has_values = conclusion.made or conclusion.spent
        self._plane.post(
            self.commit_command(work, conclusion),
            partial(self._on_values_counted, conclusion, on_reply) if has_values else on_reply,
        )

    def _on_other_reply(self, work: Work, conclusion: Conclusion, posted: float, reply: Any) -> None:
        if self._metrics is not None:
            self._metrics.count(work, conclusion.state == State.FAILED, posted)
        if isinstance(reply, BrokerError):
            self._on_refusal(work, reply)
        else:
            self._on_reply(work, reply)

    def _on_values_counted(self, conclusion: Conclusion, on_reply: OnReply, reply: Any) -> None:
        """Let go of the stored values of a call that has ended, before its reply is processed.

        Crash before this: what was made is held by its request, and what nobody holds is swept.
        """
        reply, freed = replies.freed(reply)
        if other_epoch(reply) is None:  # otherwise it is sent again
            self._plane.store.settled(conclusion.made)
            self._plane.forget([claim for claim in (*conclusion.spent, *conclusion.made) if claim.name in freed])
        on_reply(reply)

    def _postpone(self, work: Work, error: BaseException, wait_s: float, tries: int) -> None:
        """Crash before this is sent: the try counts as a death. Crash after: the call waits at the broker."""
        failure = Failure.of(error)
        log.warning("%s failed (try %d), again in %.1f s: %s", work.name, tries, wait_s, failure.summary)
        tag, header, wait_ms = work.tag, work.header, int(wait_s * 1000)
        life_ms = int(wait_ms + max(0.0, header.deadline_ms - clock.judge_ms()) + CLOCK_MARGIN_MS)
        delayed = self._keys.delayed_of(self._spec.stream)
        command = functions.postpone(
            tag.stream, self._keys.request(header.request_id), delayed, tag.entry_id, wait_ms, tries, life_ms,
            self._spec.name, _history_of(failure), self._event(work, Happening.RETRIED) if work.is_observed else b"",
        )  # fmt: skip
        if self._metrics is not None:
            self._metrics.count_retry()
        self._end(work, command, POSTPONED, failure)

    def _dead_letter(self, work: Work, why: str, error: BaseException) -> None:
        """Crash before this is sent: the call is pending and runs again elsewhere. Crash after: it is a dead letter."""
        shown = f"is a dead letter ({why}: qserve dlq show {work.header.request_id})"
        failure = self._describe(work, error, shown)
        if self._metrics is not None:
            self._metrics.count_dead_letter(why)
        self._end(work, self._dead_letter_command(work, why, failure), State.FAILED, failure)

    def _dead_letter_command(self, work: Work, why: str, failure: Failure) -> Command:
        tag, request_id = work.tag, work.header.request_id
        sealed = seal_end(self._plane.seal, request_id, State.FAILED, failure.encode())
        return functions.dead_letter(
            tag.stream, self._keys.request(request_id), tag.entry_id, request_id, why, sealed, self._spec.name,
            _history_of(failure),
        )  # fmt: skip

    def _end(self, work: Work, command: Command, state: str, failure: Failure) -> None:
        if self.watcher is not None:
            self.watcher(work, state, failure.encode())
        self._post_end(work, command, "retried" if state == POSTPONED else "dead letter")
        self._on_end(work)
        if self._metrics is not None:
            self._metrics.count(work, True, time.monotonic())
        if access_log.isEnabledFor(logging.INFO):
            _log_end(work, state)

    def _post_end(self, work: Work, command: Command, outcome: str = "given back") -> None:
        def on_reply(reply: Any) -> None:
            if isinstance(reply, BrokerError):
                self._on_refusal(work, reply)
                return
            self._on_reply(work, reply, outcome)

        self._plane.post(command, on_reply)

    # -- ends that the broker refused --------------------------------------------------------------

    def _on_refusal(self, work: Work, error: BrokerError) -> None:
        """End the request of a call whose end the broker refused, so that its caller does not wait for the deadline.

        It becomes a dead letter that holds the error, or just fails where that is refused as well.

        Crash at any point: the functions changed nothing when they failed, so the call is pending and runs again.
        """
        failure = self._describe(work, error, "could not be ended in the broker")
        as_letter = self._dead_letter_command(work, "refused", failure)
        as_failure = self.commit_command(work, Conclusion(State.FAILED, failure.encode()))
        self._try_each(work, [as_letter, as_failure])

    def _try_each(self, work: Work, commands: Sequence[Command]) -> None:
        first, *others = commands

        def on_reply(reply: Any) -> None:
            if not isinstance(reply, BrokerError):
                self._on_reply(work, reply)
                if not others and reply == Reply.OK and self._metrics is not None:
                    self._metrics.count_end(State.FAILED)  # the last of them is a commit
            elif others:
                self._try_each(work, others)
            else:
                with _logging_for(work):
                    log.error(
                        "request %s was overwritten in the broker, and cannot end: %s", work.header.request_id, reply
                    )
                self._drop(work.tag)
                self._on_settled(work.tag)

        self._plane.post(first, on_reply)

    def _drop(self, tag: Tag) -> None:
        """Remove an entry that no function can end."""
        self._plane.post(("XACK", tag.stream, GROUP, tag.entry_id), ignore)
        self._plane.post(("XDEL", tag.stream, tag.entry_id), ignore)

    def _on_reply(self, work: Work, reply: Any, outcome: str = "refused") -> None:
        self._on_settled(work.tag)
        if work.span is not None:
            work.span.settled(outcome if reply == Reply.OK else "no effect", False)
        if reply != Reply.OK:
            log.debug("the broker's reply to the end of request %s: %r", work.header.request_id, reply)

    def _failed(self, work: Work, error: BaseException, what: str) -> Conclusion:
        return Conclusion(State.FAILED, self._describe(work, error, what).encode())

    def _describe(self, work: Work, error: BaseException, what: str) -> Failure:
        """Log an error with the id of its request, and return it as the caller gets it."""
        with _logging_for(work):
            return log_failure(log, work.name, what, error, self._spec.deployment)


@contextlib.contextmanager
def _logging_for(work: Work) -> Iterator[None]:
    """Have what is logged name the request of a call."""
    token = request_context.set(work.request())
    try:
        yield
    finally:
        request_context.reset(token)


def _history_of(failure: Failure) -> str:
    return f"{failure.type}: {failure.message}"[:HISTORY_CHARS]


def _log_end(work: Work, state: str) -> None:
    """Write a line of the access log, with the id of the request."""
    took_ms = 1000 * (time.monotonic() - work.began) if work.began else 0.0
    status = _ENDS.get(state, "OK")
    fields = of_request(work.header.trace_id, method=work.name, status=status, latency_ms=round(took_ms, 3))
    with _logging_for(work):
        access_log.info("CALL %s %s %.1fms", work.name, status, took_ms, extra=fields)
