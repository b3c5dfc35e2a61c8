"""How calls end: committed, failed, tried again later, or kept as dead letters."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from qserve.base import failpoints
from qserve.base.context import request_context
from qserve.base.keys import Keys
from qserve.base.log import get_logger
from qserve.broker import functions
from qserve.broker.functions import other_epoch
from qserve.engine.step import Conclusion
from qserve.exceptions import BrokerError, PayloadError
from qserve.wire.application import DeploymentRecord
from qserve.wire.failure import Failure
from qserve.wire.outcome import State
from qserve_workers.replica.plane import LoopPlane
from qserve_workers.replica.retries import RetryPolicy
from qserve_workers.replica.work import Delivery, Tag, Work, bury_unread

log = get_logger(__name__)


class Ending:
    """Ends the calls of one replica, each by one act at the broker.

    Parameters:
      name: The replica's name.
      stream: The deployment's queue.
      on_end: Called when a call has ended here; the broker's reply may still be on its way.
      on_settled: Called when the broker has acknowledged a delivery, or put it back.
    """

    def __init__(
        self,
        name: str,
        record: DeploymentRecord,
        stream: str,
        plane: LoopPlane,
        keys: Keys,
        *,
        on_end: Callable[[Work], None],
        on_settled: Callable[[Tag], None],
    ) -> None:
        self._name = name
        self._deployment = record.name
        self._stream = stream
        self._plane = plane
        self._keys = keys
        self._retries = RetryPolicy(record)
        self._on_end = on_end
        self._on_settled = on_settled

    def commit(self, work: Work, conclusion: Conclusion) -> None:
        """Publish what a call caused.

        Crash before this is sent: the call is pending and runs again elsewhere. Crash after: it has moved on.
        """
        try:
            self._post_commit(work, conclusion)
        except Exception as error:  # one of ours: without an end the request would wait for its deadline
            self._post_commit(
                work, Conclusion(State.FAILED, self._describe(work, error, "cannot be committed").encode())
            )
        self._on_end(work)

    def _post_commit(self, work: Work, conclusion: Conclusion) -> None:
        def on_reply(reply: Any) -> None:
            if failpoints.ARMED:
                failpoints.hit("commit.after_send")
            epoch = other_epoch(reply)
            if epoch is not None:
                self._plane.mailbox.change_epoch(epoch)
            if epoch:
                # the call may be of either epoch: where it is not of this one, its entry is gone and so is its effect
                self._post_commit(work, conclusion)
            elif reply == b"BADKEY":
                self._fail_badly(work)
            else:
                self._on_reply(work, reply)

        if failpoints.ARMED:
            failpoints.hit("commit.before_send")
        plane = self._plane
        plane.post(work.commit_command(self._keys, conclusion, plane.epoch.current(), plane.seal), on_reply)

    def fail(self, work: Work, error: BaseException) -> None:
        """End a call whose code raised: it is tried again, or its request fails."""
        tries = work.tries()
        wait_s = self._retries.wait_s(error, tries)
        if wait_s is not None:
            self._postpone(work, error, wait_s, tries + 1)
        elif self._retries.is_exhausted(error, tries):
            self.bury(work, "retries", error)
        else:
            failure = self._describe(work, error, "failed")
            self.commit(work, Conclusion(State.FAILED, failure.encode()))

    def bury(self, work: Work, why: str, error: BaseException) -> None:
        """Keep a call as a dead letter, and fail its request.

        Crash before this is sent: the call is pending and runs again elsewhere. Crash after: it is a dead letter.
        """
        failure = self._describe(work, error, f"is a dead letter ({why})")
        self._send(work, work.bury_command(self._keys, why, failure, self._name, self._plane.seal))

    def give_back(self, delivery: Delivery) -> None:
        """Put a delivery back that would have to wait here for a call that may kill this replica.

        Crash before this is sent: the delivery is handed over, with a death that was not its own.
        """
        tag = delivery.tag
        command = functions.give_back(tag.stream, self._stream, [tag.entry_id], self._keys.request(""))
        self._plane.post(command, lambda reply: self._on_settled(tag))

    def bury_unread(self, delivery: Delivery, error: Exception) -> None:
        """Keep a delivery of which nobody can tell whose it is; see ``bury``."""
        log.error("a message of queue %s cannot be read and is a dead letter now: %s", self._stream, error)
        failure = Failure.of(PayloadError(f"a message of {self._deployment!r} cannot be read: {error}"))
        command = bury_unread(self._keys, delivery, failure, self._name, self._plane.seal)
        self._plane.post(command, lambda reply: self._on_settled(delivery.tag))

    def _describe(self, work: Work, error: BaseException, what: str) -> Failure:
        failure = Failure.of(error, self._deployment)
        token = request_context.set(work.context())
        name = work.step if work.call is None else work.call.method
        log.error("%s %s: %s", name, what, failure.message, exc_info=error)
        request_context.reset(token)
        return failure

    def _postpone(self, work: Work, error: BaseException, wait_s: float, tries: int) -> None:
        """Crash before this is sent: the try counts as a death. Crash after: the call waits at the broker."""
        log.warning("%s failed (try %d), again in %.1f s: %r", work.step, tries, wait_s, error)
        self._send(work, work.postpone_command(self._keys, self._stream, wait_s, tries, self._name, error))

    def _send(self, work: Work, command: Any) -> None:
        self._plane.post(command, lambda reply: self._on_reply(work, reply))
        self._on_end(work)

    def _on_reply(self, work: Work, reply: Any) -> None:
        self._on_settled(work.delivery.tag)
        if reply != b"OK" and log.isEnabledFor(logging.DEBUG):
            log.debug("the end of request %s was answered %r", work.header.request_id, reply)

    def _fail_badly(self, work: Work) -> None:
        error = BrokerError(f"a queue that {work.step!r} leads to is no stream in the broker: its key was overwritten")
        self._post_commit(work, Conclusion(State.FAILED, self._describe(work, error, "failed").encode()))
