"""The plane of local mode: the same submissions and moves as with a broker, carried out in this process."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, partial
from math import inf
from typing import Any, Final, NamedTuple

from qserve.base import unused
from qserve.base.clock import clock
from qserve.base.context import Run
from qserve.base.keys import EVENTS_KEPT
from qserve.base.log import get_logger
from qserve.base.promise import Promise
from qserve.base.settings import Settings
from qserve.base.turns import Turns
from qserve.calls.compose import ComposingPlane, Submission, failure_in
from qserve.calls.events import Logged
from qserve.calls.items import WINDOW, ItemRef
from qserve.calls.mailbox import ARGUMENT_LOST, STOPPED, full, not_found
from qserve.calls.ref import Call, Ref
from qserve.engine.step import Conclusion
from qserve.exceptions import AppNotFound
from qserve.wire.application import ApplicationRecord
from qserve.wire.claim import Claim
from qserve.wire.envelope import Header
from qserve.wire.events import Event, Happening
from qserve.wire.moves import Awaited, Move, Start
from qserve.wire.outcome import Outcome, State
from qserve.wire.progress import Progress

log: Final = get_logger(__name__)
record_here: ContextVar[ApplicationRecord | None] = ContextVar("qserve_record_here", default=None)
"""The application version that the running user code belongs to; its calls stay within that version."""
_OPEN = Outcome(State.OPEN, b"")


@dataclass(slots=True, eq=False)
class Request:
    """The state of a request.

    Parameters:
      version: The application version that runs it.
      keep_ms: How long its result is kept.
      followers: The refs that get its outcome.
      is_observed: Whether its events are written down, because somebody follows it or its code has reported progress.
      events: The last ones, with their numbers.
      joins: By step, the slots that are filled of a call which waits for others.
      waiters: The requests that have its result as an argument.
      ahead: How many items of a streamed result its reader has not taken.
      held: What the producer waits for when it is too far ahead.
    """

    key: str
    header: Header
    version: str
    keep_ms: int
    followers: list[Ref]
    outcome: Outcome = _OPEN
    progress: Progress | None = None
    is_observed: bool = False
    events: deque[tuple[int, Event]] = field(default_factory=partial(deque, maxlen=EVENTS_KEPT))
    joins: dict[str, dict[int, bytes]] = field(default_factory=dict)
    waiters: list[tuple[Request, Awaited]] = field(default_factory=list)
    ahead: int = 0
    held: Promise | None = None

    def is_open(self) -> bool:
        return self.outcome.state == State.OPEN


class Delivery(NamedTuple):
    """One call on its way to the deployment that runs it."""

    stream: str
    request: Request
    step: str
    values: Sequence[bytes]


@dataclass(slots=True)
class Queue:
    """The calls of one deployment.

    Parameters:
      version: The application version that it belongs to.
      max_ongoing: Calls that may run at the same time.
      accept: Takes a call without blocking.
      end: Notifies the calls of a request that it was cancelled or has expired, without blocking.
      observe: Has the calls of a request say when they begin and end, without blocking.
    """

    version: str
    max_ongoing: int
    accept: Callable[[Delivery], None]
    end: Callable[[str, str], None]
    observe: Callable[[str], None]
    waiting: deque[Delivery] = field(default_factory=deque)
    running: int = 0


class Requests:
    """The state of all requests, by their keys: the counterpart of the functions in ``qserve/broker/lua``.

    Nothing here waits, locks or runs user code; the plane makes sure that one call follows the other.
    """

    def __init__(self) -> None:
        self.queues: dict[str, Queue] = {}
        self._requests: dict[str, Request] = {}
        self._kept: deque[tuple[float, str]] = deque()
        self._when_idle: dict[str, Callable[[], object]] = {}

    def submit(self, submission: Submission, ref: Ref) -> None:
        """Accept a request, or refuse it and leave everything as it was."""
        self._drop_expired()
        streams = [item.stream for item in (*submission.moves, *submission.awaited)]
        if submission.limits and any(self._is_full(stream, submission.limits) for stream in streams):
            ref.settle(full(submission.limited, 1), was_accepted=False)
            return
        queue = self.queues.get(streams[0])
        version = queue.version if queue else ""
        request = Request(submission.request, submission.header, version, submission.keep_ms, [ref])
        self._requests[request.key] = request
        self._apply(request, submission.moves)
        for item in submission.awaited:
            self._await(request, item)
        ref.acceptance.set(True)

    def _is_full(self, stream: str, limits: Mapping[str, int]) -> bool:
        queue = self.queues.get(stream)
        return queue is not None and 0 <= limits.get(stream, -1) <= len(queue.waiting)

    def _await(self, request: Request, item: Awaited) -> None:
        other = self._requests.get(item.request)
        if other is None:
            self._end(request, ARGUMENT_LOST)
        elif other.is_open():
            other.waiters.append((request, item))
        else:
            self._notify(request, item, other.outcome)

    def _notify(self, request: Request, item: Awaited, outcome: Outcome) -> None:
        if outcome.state != State.DONE:
            self._end(request, outcome)
        elif request.is_open():
            self._fill(request, item.stream, item.step, item.needs, [(item.slot, outcome.payload)])

    def _apply(self, request: Request, moves: Sequence[Move]) -> None:
        for move in moves:
            if isinstance(move, Start):
                self._put(Delivery(move.stream, request, move.step, move.values))
            else:
                self._fill(request, move.stream, move.step, move.needs, move.slots)

    def _fill(self, request: Request, stream: str, step: str, needs: int, slots: Sequence[tuple[int, bytes]]) -> None:
        filled = request.joins.setdefault(step, {})
        filled.update(slots)
        if len(filled) == needs:
            del request.joins[step]
            self._put(Delivery(stream, request, step, [value for _, value in sorted(filled.items())]))

    def _put(self, delivery: Delivery) -> None:
        queue = self.queues.get(delivery.stream)
        if queue is not None:
            queue.waiting.append(delivery)
            self._hand_out(queue)

    def _hand_out(self, queue: Queue) -> None:
        while queue.waiting and queue.running < queue.max_ongoing:
            delivery = queue.waiting.popleft()
            if delivery.request.is_open():
                queue.running += 1
                queue.accept(delivery)

    def commit(self, delivery: Delivery, conclusion: Conclusion, event: Event | None = None) -> None:
        """End a call and publish all that it caused, unless its request has ended meanwhile."""
        if event is not None and delivery.request.is_open():
            self._log(delivery.request, event)
        queue = self.queues.get(delivery.stream)
        if queue is not None:
            queue.running -= 1
            self._hand_out(queue)
        if conclusion.state:
            self._end(delivery.request, Outcome(conclusion.state, conclusion.payload))
        elif delivery.request.is_open():
            self._apply(delivery.request, conclusion.moves)

    def _end(self, request: Request, outcome: Outcome) -> None:
        if not request.is_open():
            return
        request.outcome = outcome
        request.joins.clear()
        if request.keep_ms > 0:
            self._kept.append((time.monotonic() + request.keep_ms / 1000, request.key))
        else:
            del self._requests[request.key]
        if request.held is not None:
            request.held.set(False)
        if outcome.state in STOPPED:
            for queue in self.queues.values():
                if queue.running:
                    queue.end(request.header.request_id, outcome.state)
        waiters, request.waiters = request.waiters, []
        for waiter, item in waiters:
            self._notify(waiter, item, outcome)
        self._check_idle(request.version)
        followers, request.followers = request.followers, []
        for ref in followers:
            ref.settle(outcome)

    def cancel(self, key: str) -> None:
        if key in self._requests:
            self._end(self._requests[key], Outcome(State.CANCELLED, b""))

    def cancel_all(self) -> None:
        for key in list(self._requests):
            self.cancel(key)

    def expire(self) -> float:
        """End the requests whose deadline has passed; return the next deadline, in ms of Unix time."""
        now_ms = clock.judge_ms()
        following = inf
        for request in list(self._requests.values()):
            if request.header.deadline_ms <= now_ms:
                self._end(request, Outcome(State.EXPIRED, b""))
            elif request.is_open():
                following = min(following, request.header.deadline_ms)
        return following

    def follow(self, key: str, ref: Ref) -> None:
        request = self._requests.get(key)
        if request is None:
            ref.settle(not_found(ref.request_id), was_accepted=False)
        elif not request.is_open():
            ref.settle(request.outcome)
        elif ref not in request.followers:
            request.followers.append(ref)
            ref.acceptance.set(True)

    def forget(self, key: str) -> None:
        """Drop a result, or the later result of an open request."""
        request = self._requests.get(key)
        if request is not None and request.is_open():
            request.keep_ms = 0
        else:
            self._requests.pop(key, None)

    def _drop_expired(self) -> None:
        now = time.monotonic()
        while self._kept and self._kept[0][0] < now:
            self._requests.pop(self._kept.popleft()[1], None)

    def emit(self, request: Request, payload: bytes, may_continue: Promise[bool]) -> None:
        """Send one item; the promise is set to True once another may be sent, and to False if none is wanted."""
        if not request.is_open():
            may_continue.set(False)
            return
        for ref in request.followers:
            if isinstance(ref, ItemRef):
                ref.add(payload)
        request.ahead += 1
        if request.ahead < WINDOW:
            may_continue.set(True)
        else:
            request.held = may_continue

    def take(self, key: str, count: int) -> None:
        """Note that the reader has taken this many items more."""
        request = self._requests.get(key)
        if request is None:
            return
        request.ahead -= count
        if request.held is not None and request.ahead < WINDOW:
            request.held.set(True)
            request.held = None

    def note(self, key: str, event: Event, on_reply: Callable[[bool], object]) -> None:
        """Write down an event of an open request."""
        request = self._requests.get(key)
        is_open = request is not None and request.is_open()
        if request is not None and is_open:
            self._log(request, event)
            if event.name == Happening.PROGRESS:
                request.progress = Progress(event.fraction, event.message)
        on_reply(is_open)

    def _log(self, request: Request, event: Event) -> None:
        request.is_observed = True
        number = request.events[-1][0] + 1 if request.events else 1
        request.events.append((number, event))

    def observe(self, key: str, after: int, asked: Promise[Logged | Exception]) -> None:
        """Set the promise to the events of a request behind a number, and have those that come written down."""
        request = self._requests.get(key)
        if request is not None and request.is_open() and not request.is_observed:
            request.is_observed = True
            for queue in self.queues.values():
                if queue.running:
                    queue.observe(request.header.request_id)
        events = request.events if request is not None else ()
        asked.set(Logged([(number, event) for number, event in events if number > after]))

    def ask(self, key: str, asked: Promise[Progress | Exception | None]) -> None:
        """Set the promise to the progress of a request."""
        request = self._requests.get(key)
        asked.set(request.progress if request is not None and request.is_open() else None)

    def when_idle(self, version: str, callback: Callable[[], object]) -> None:
        """Run ``callback`` once a version has no open request."""
        self._when_idle[version] = callback
        self._check_idle(version)

    def _check_idle(self, version: str) -> None:
        if version in self._when_idle:
            mine = (request for request in self._requests.values() if request.version == version)
            if not any(request.is_open() for request in mine):
                self._when_idle.pop(version)()


@cache
def _warn_of(option: str) -> None:
    unused.warn("handles in local mode", [option], unused.LOCAL_HANDLES)


class LocalPlane(ComposingPlane):
    """Carries calls within this process, for any number of threads and event loops.

    Everything that changes requests is an operation. Operations run one at a time, in the first thread that finds one
    waiting.

    Parameters:
      settings: Defaults for deadlines and for how long results are kept; the key signs what must be pickled.
    """

    owns_results = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, self.application)
        self.requests: Final = Requests()
        self.records: dict[str, ApplicationRecord] = {}
        """The version of each application that new calls go to."""
        self._operations: deque[Callable[[], object]] = deque()
        self._operating = threading.Lock()
        self._alarm = threading.Event()
        self._alarm_ms = inf
        self._turns = Turns("ending requests at their deadline", log)
        self._closed = False
        threading.Thread(target=self._watch_deadlines, name="qserve-deadlines", daemon=True).start()

    def operate(self, operation: Callable[..., object], *args: Any) -> None:
        """Run an operation on ``requests``, before or after this returns."""
        # This never blocks, because the garbage collector may cancel a dropped stream in the middle of another
        # operation. A thread that finds the lock held leaves: the holder checks again after releasing it.
        self._operations.append(partial(operation, *args))
        while self._operations and self._operating.acquire(blocking=False):
            try:
                while self._operations:
                    self._operations.popleft()()
            except Exception:
                log.exception("an operation of the local plane failed")
            finally:
                self._operating.release()

    def application(self, app: str) -> ApplicationRecord:
        """Return an application's record; inside one of its deployments, that of the running version.

        Raises:
          AppNotFound: No application of that name is deployed; the message names those that are.
        """
        own = record_here.get()
        if own is not None and own.name == app:
            return own
        try:
            return self.records[app]
        except KeyError:
            known = ", ".join(sorted(self.records)) or "none"
            raise AppNotFound(f"no application named {app!r} is deployed; deployed are: {known}") from None

    def follow(self, ref: Ref[Any]) -> None:
        if not ref.done.is_set():
            self.operate(self.requests.follow, self.keys.request(ref.request_id), ref)

    def cancel(self, ref: Ref[Any]) -> None:
        self.operate(self.requests.cancel, self.keys.request(ref.request_id))

    def add_credit(self, request_id: str, items: int) -> None:
        self.operate(self.requests.take, self.keys.request(request_id), items)

    def note(self, run: Run, event: Event, on_reply: Callable[[bool], object] = bool) -> None:
        self.operate(self.requests.note, self.keys.request(run.request_id), event, on_reply)

    def events(self, request_id: str, after: int) -> Promise[Logged | Exception]:
        asked: Promise[Logged | Exception] = Promise()
        self.operate(self.requests.observe, self.keys.request(request_id), after, asked)
        return asked

    def progress(self, request_id: str) -> Promise[Progress | Exception | None]:
        asked: Promise[Progress | Exception | None] = Promise()
        self.operate(self.requests.ask, self.keys.request(request_id), asked)
        return asked

    def release(self, request_id: str, value: Claim | None = None) -> None:
        self._operations.append(partial(self.requests.forget, self.keys.request(request_id)))

    def release_item(self, value: Claim) -> None:
        """Do nothing: no value is stored here."""

    def close(self) -> None:
        """Cancel all open requests, and refuse new ones."""
        self.records.clear()
        self.operate(self.requests.cancel_all)
        self._closed = True
        self._alarm.set()

    def _send(self, ref: Ref[Any], submission: Submission, call: Call | None) -> None:
        if submission.webhook:
            _warn_of("webhook")
        if call is not None and call.is_traced:
            _warn_of("trace")
        self.operate(self._submit, submission, ref, call)

    def _submit(self, submission: Submission, ref: Ref[Any], call: Call | None) -> None:
        failure = None if call is None or not submission.awaited else failure_in(call)
        if failure is not None:
            ref.settle(failure, was_accepted=False)
            return
        self.requests.submit(submission, ref)
        if submission.header.deadline_ms < self._alarm_ms:
            self._alarm_ms = submission.header.deadline_ms
            self._alarm.set()

    def _watch_deadlines(self) -> None:
        while not self._closed:
            left_s = None if self._alarm_ms == inf else max(0.0, (self._alarm_ms - clock.judge_ms()) / 1000)
            if self._alarm.wait(left_s):
                self._alarm.clear()
            else:
                self.operate(self._expire)

    def _expire(self) -> None:
        with self._turns:
            self._alarm_ms = self.requests.expire()
        if self._turns.failures:
            self._alarm_ms = clock.judge_ms() + 1000 * self._turns.pause_s
        self._alarm.set()
