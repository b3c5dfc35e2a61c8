"""Requests and queues in this process: what the broker's functions do, for a plane without a broker.

Nothing here waits, locks or runs user code; the caller makes sure that one call follows the other.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from qserve.base.clock import clock
from qserve.base.promise import Promise
from qserve.calls.compose import Submission
from qserve.calls.mailbox import argument_lost, full, not_found
from qserve.calls.ref import WINDOW, ItemRef, Ref
from qserve.wire.envelope import Header
from qserve.wire.moves import Awaited, Move, Start
from qserve.wire.outcome import Outcome, State, ends_waiters, may_become


class Delivery(NamedTuple):
    """One call on its way to the deployment that runs it; ``request`` is the key of its request."""

    stream: str
    request: str
    header: Header
    step: str
    values: Sequence[bytes]


@dataclass(slots=True)
class Queue:
    """The calls of one deployment.

    Parameters:
      version: The application version that it belongs to.
      max_ongoing: Calls that may run at the same time.
      accept: Takes a call without blocking.
    """

    version: str
    max_ongoing: int
    accept: Callable[[Delivery], None]
    waiting: deque[Delivery] = field(default_factory=deque)
    running: int = 0


@dataclass(slots=True)
class _Request:
    header: Header
    version: str
    keep_ms: int
    followers: list[Ref]
    state: str = State.OPEN
    payload: bytes = b""
    joins: dict[str, dict[int, bytes]] = field(default_factory=dict)
    waiters: list[tuple[str, Awaited]] = field(default_factory=list)
    ahead: int = 0
    held: Promise | None = None


class Requests:
    """The state of all requests, by their keys: the counterpart of the functions in ``qserve/broker/lua``."""

    def __init__(self) -> None:
        self.queues: dict[str, Queue] = {}
        self._requests: dict[str, _Request] = {}
        self._kept: deque[tuple[float, str]] = deque()
        self._open: Counter[str] = Counter()
        self._when_idle: dict[str, Callable[[], object]] = {}

    def is_open(self, key: str) -> bool:
        """Return whether a request is open."""
        request = self._requests.get(key)
        return request is not None and request.state == State.OPEN

    def submit(self, submission: Submission, ref: Ref) -> None:
        """Accept a request, or refuse it and leave everything as it was."""
        self._drop_expired()
        streams = [item.stream for item in (*submission.moves, *submission.awaited)]
        if submission.limits and any(self._is_full(stream, submission.limits) for stream in streams):
            ref.settle(full(1))
            return
        queue = self.queues.get(streams[0])
        version = queue.version if queue else ""
        request = _Request(Header.decode(submission.header), version, submission.keep_ms, [ref])
        self._requests[submission.request] = request
        self._open[version] += 1
        self._apply(submission.request, request, submission.moves)
        for item in submission.awaited:
            self._await(submission.request, item)
        ref.accepted.set(None)

    def _is_full(self, stream: str, limits: Mapping[str, int]) -> bool:
        queue = self.queues.get(stream)
        return queue is not None and 0 <= limits.get(stream, -1) <= len(queue.waiting)

    def _await(self, key: str, item: Awaited) -> None:
        other = self._requests.get(item.request)
        if other is not None and other.state == State.OPEN:
            other.waiters.append((key, item))
        elif other is not None:
            self._notify(key, item, other.state, other.payload)
        else:
            self._end(key, *argument_lost())

    def _notify(self, key: str, item: Awaited, state: str, payload: bytes) -> None:
        if ends_waiters(state):
            self._end(key, state, payload)
        elif self.is_open(key):
            self._fill(key, self._requests[key], item.stream, item.step, item.needs, [(item.slot, payload)])

    def _apply(self, key: str, request: _Request, moves: Sequence[Move]) -> None:
        for move in moves:
            if isinstance(move, Start):
                self._put(Delivery(move.stream, key, request.header, move.step, move.values))
            else:
                self._fill(key, request, move.stream, move.step, move.needs, move.slots)

    def _fill(
        self, key: str, request: _Request, stream: str, step: str, needs: int, slots: Sequence[tuple[int, bytes]]
    ) -> None:
        filled = request.joins.setdefault(step, {})
        filled.update(slots)
        if len(filled) == needs:
            del request.joins[step]
            self._put(Delivery(stream, key, request.header, step, [value for _, value in sorted(filled.items())]))

    def _put(self, delivery: Delivery) -> None:
        queue = self.queues.get(delivery.stream)
        if queue is not None:
            queue.waiting.append(delivery)
            self._hand_out(queue)

    def _hand_out(self, queue: Queue) -> None:
        while queue.waiting and queue.running < queue.max_ongoing:
            delivery = queue.waiting.popleft()
            if self.is_open(delivery.request):
                queue.running += 1
                queue.accept(delivery)

    def commit(self, delivery: Delivery, state: str, payload: bytes, moves: Sequence[Move]) -> None:
        """End a call and publish all that it caused, unless its request has ended meanwhile."""
        queue = self.queues.get(delivery.stream)
        if queue is not None:
            queue.running -= 1
            self._hand_out(queue)
        if state:
            self._end(delivery.request, state, payload)
        elif self.is_open(delivery.request):
            self._apply(delivery.request, self._requests[delivery.request], moves)

    def _end(self, key: str, state: str, payload: bytes) -> None:
        request = self._requests.get(key)
        if request is None or not may_become(request.state, state):
            return
        request.state, request.payload = state, payload
        request.joins.clear()
        if request.keep_ms > 0:
            self._kept.append((time.monotonic() + request.keep_ms / 1000, key))
        else:
            del self._requests[key]
        if request.held is not None:
            request.held.set(False)
        waiters, request.waiters = request.waiters, []
        for waiter, item in waiters:
            self._notify(waiter, item, state, payload)
        self._open[request.version] -= 1
        if not self._open[request.version]:
            del self._open[request.version]
            self._when_idle.pop(request.version, _nothing)()
        followers, request.followers = request.followers, []
        for ref in followers:
            ref.settle(Outcome(state, payload))

    def close(self, key: str, state: str) -> None:
        """End an open request without a result."""
        self._end(key, state, b"")

    def close_all(self, state: str) -> None:
        """End all open requests."""
        for key in list(self._requests):
            self.close(key, state)

    def expire(self) -> float:
        """End the requests whose deadline has passed; return the next deadline, in ms of Unix time."""
        now_ms = clock.judge_ms()
        following = inf
        for key, request in list(self._requests.items()):
            if request.state != State.OPEN:
                continue
            if request.header.deadline_ms <= now_ms:
                self.close(key, State.EXPIRED)
            else:
                following = min(following, request.header.deadline_ms)
        return following

    def follow(self, key: str, ref: Ref) -> None:
        """Settle ``ref`` when the request has ended."""
        request = self._requests.get(key)
        if request is None:
            ref.settle(not_found())
        elif request.state != State.OPEN:
            ref.settle(Outcome(request.state, request.payload))
        elif ref not in request.followers:
            request.followers.append(ref)

    def forget(self, key: str) -> None:
        """Drop a result, or the later result of an open request."""
        request = self._requests.get(key)
        if request is not None and request.state == State.OPEN:
            request.keep_ms = 0
        else:
            self._requests.pop(key, None)

    def _drop_expired(self) -> None:
        now = time.monotonic()
        while self._kept and self._kept[0][0] < now:
            self._requests.pop(self._kept.popleft()[1], None)

    def emit(self, key: str, payload: bytes, go_on: Promise) -> None:
        """Send one item; ``go_on`` is set once there is room for another, to False when the request has ended."""
        request = self._requests.get(key)
        if request is None or request.state != State.OPEN:
            go_on.set(False)
            return
        for ref in request.followers:
            if isinstance(ref, ItemRef):
                ref.add(payload)
        request.ahead += 1
        if request.ahead < WINDOW:
            go_on.set(True)
        else:
            request.held = go_on

    def take(self, key: str, count: int) -> None:
        """Note that the reader has taken this many items more."""
        request = self._requests.get(key)
        if request is None:
            return
        request.ahead -= count
        if request.held is not None and request.ahead < WINDOW:
            request.held.set(True)
            request.held = None

    def when_idle(self, version: str, callback: Callable[[], object]) -> None:
        """Run ``callback`` once a version has no open request."""
        if self._open[version]:
            self._when_idle[version] = callback
        else:
            callback()


def _nothing() -> None:
    """The callback of versions without one."""
