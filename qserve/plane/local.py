"""The plane of a local run: requests live in this process, and move by the same moves as at a broker."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any, NamedTuple

from qserve.exceptions import AppNotFound
from qserve.items import WINDOW, ItemRef
from qserve.keys import Keys
from qserve.log import get_logger
from qserve.plane.base import CallOptions, Outcome
from qserve.plane.functions import Awaited, Move, Start
from qserve.plane.outgoing import Composer, Submission
from qserve.plane.replies import lost, refused
from qserve.promise import Promise
from qserve.ref import Ref
from qserve.registry import ApplicationRecord
from qserve.settings import Settings
from qserve.wire.codec import Codec
from qserve.wire.envelope import Header

log = get_logger(__name__)
record_here: ContextVar[ApplicationRecord | None] = ContextVar("qserve_record_here", default=None)
"""The application version of the running user code: its calls stay within that version."""


class Delivery(NamedTuple):
    """One call on its way to the deployment that runs it."""

    stream: str
    request: str
    header: Header
    step: str
    values: Sequence[bytes]


@dataclass(slots=True)
class _Queue:
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
    state: str = "o"
    payload: bytes = b""
    joins: dict[str, dict[int, bytes]] = field(default_factory=dict)
    waiters: list[tuple[str, Awaited]] = field(default_factory=list)
    ahead: int = 0
    held: Promise | None = None


class LocalPlane:
    """Calls, results and cancellation within this process, for any number of threads and loops.

    What changes the requests is an act. Acts run one after another, each of them whole, in whichever thread
    gets to it; none of them waits or runs user code.

    Parameters:
      settings: Defaults for deadlines and the life of results; its key signs what must be pickled.
    """

    def __init__(self, settings: Settings) -> None:
        self.codec = Codec(settings.secret_key)
        self.keys = Keys(settings.namespace)
        self._composer = Composer(settings, self.keys, self.codec, self.application)
        self._records: dict[str, ApplicationRecord] = {}
        self._queues: dict[str, _Queue] = {}
        self._requests: dict[str, _Request] = {}
        self._kept: deque[tuple[float, str]] = deque()
        self._open: Counter[str] = Counter()
        self._when_idle: dict[str, Callable[[], object]] = {}
        self._acts: deque[Callable[[], object]] = deque()
        self._acting = threading.Lock()
        self._alarm = threading.Event()
        self._alarm_ms = inf
        self._closed = False
        threading.Thread(target=self._watch_deadlines, name="qserve-deadlines", daemon=True).start()

    # -- the Plane ---------------------------------------------------------------------------------

    def call(
        self,
        app: str,
        deployment: str,
        method: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: CallOptions,
    ) -> Ref:
        """Start one method of a deployment; see ``plane.base.Plane``."""
        return self._submit(self._composer.call(app, deployment, method, args, kwargs, options), options)

    def run(
        self,
        app: str,
        graph: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: CallOptions,
    ) -> Ref:
        """Start a graph; see ``plane.base.Plane``."""
        return self._submit(self._composer.run(app, graph, args, kwargs, options), options)

    def wait(self, ref: Ref, timeout_s: float | None) -> bool:
        """Block until ``ref`` is done; False when ``timeout_s`` passed first."""
        self.follow(ref)
        return ref.done.wait(timeout_s)

    def follow(self, ref: Ref) -> None:
        """Have ``ref``, which may be a copy of another, settled when its request is done."""
        if not ref.done.is_set():
            self._act(partial(self._follow, self.keys.request(ref.request_id), ref))

    def cancel(self, ref: Ref) -> None:
        """End an open request without a result; running code goes on, its effects are dropped."""
        self._act(partial(self._close, self.keys.request(ref.request_id), "c"))

    def take(self, request_id: str, count: int) -> None:
        """This many more items of a streamed result were taken."""
        self._act(partial(self._take, self.keys.request(request_id), count))

    def forget(self, request_id: str) -> None:
        """Drop a result that nobody will ask for again, along with whatever is done next."""
        self._acts.append(partial(self._forget, self.keys.request(request_id)))

    # -- applications ------------------------------------------------------------------------------

    def application(self, app: str) -> ApplicationRecord:
        """An application's record; inside a deployment, its own version.

        Raises:
          AppNotFound: No application of that name is deployed; the message names those that are.
        """
        own = record_here.get()
        if own is not None and own.name == app:
            return own
        try:
            return self._records[app]
        except KeyError:
            known = ", ".join(sorted(self._records)) or "none"
            raise AppNotFound(f"no application named {app!r} is deployed; deployed are: {known}") from None

    def activate(self, record: ApplicationRecord) -> None:
        """Make a version the one that callers reach."""
        self._records[record.name] = record

    def deactivate(self, app: str) -> None:
        """Refuse an application's new calls; those that are accepted go on."""
        self._records.pop(app, None)

    def attach(self, record: ApplicationRecord, deployment: str, accept: Callable[[Delivery], None]) -> None:
        """Give a deployment's calls to ``accept``, which may not block, as many as may run at once."""
        queue = _Queue(record.version, record.deployments[deployment].max_ongoing, accept)
        self._queues[record.stream(self.keys, deployment)] = queue

    def detach(self, record: ApplicationRecord) -> None:
        """Give no more calls to a version's deployments."""
        for deployment in record.deployments:
            self._queues.pop(record.stream(self.keys, deployment), None)

    def when_idle(self, version: str, callback: Callable[[], object]) -> None:
        """Run ``callback`` once a version has no open request."""

        def look() -> None:
            if self._open[version]:
                self._when_idle[version] = callback
            else:
                callback()

        self._act(look)

    def close(self) -> None:
        """Cancel what is open, and take no more."""
        self._records.clear()
        for request in list(self._requests):
            self._act(partial(self._close, request, "c"))
        self._queues.clear()
        self._closed = True
        self._alarm.set()

    # -- what deployments say ----------------------------------------------------------------------

    def is_open(self, request: str) -> bool:
        """Whether a request still wants its result."""
        found = self._requests.get(request)
        return found is not None and found.state == "o"

    def commit(self, delivery: Delivery, state: str, payload: bytes, moves: Sequence[Move]) -> None:
        """End a call with all it causes; with nothing when its request has ended meanwhile."""
        self._act(partial(self._commit, delivery, state, payload, moves))

    def emit(self, request: str, payload: bytes) -> Promise:
        """Send one item; the promise is set once there is room for another: False when nobody wants one."""
        gone_on = Promise()
        self._act(partial(self._emit, request, payload, gone_on))
        return gone_on

    # -- acts --------------------------------------------------------------------------------------

    def _act(self, act: Callable[[], object]) -> None:
        # Never blocks: the garbage collector may cancel a dropped stream in the middle of another act. Whoever
        # finds the lock taken leaves, and its holder looks again after letting go.
        self._acts.append(act)
        while self._acts and self._acting.acquire(blocking=False):
            try:
                while self._acts:
                    self._acts.popleft()()
            except Exception:
                log.exception("an act of the local plane failed")
            finally:
                self._acting.release()

    def _submit(self, submission: Submission, options: CallOptions) -> Ref:
        kind = ItemRef if options.stream else Ref
        ref = kind(submission.request_id, self, owned=True)
        if submission.outcome is not None:
            ref.settle(submission.outcome)
        else:
            self._act(partial(self._accept, submission, ref))
        return ref

    def _accept(self, submission: Submission, ref: Ref) -> None:
        self._drop_expired()
        streams = [item.stream for item in (*submission.moves, *submission.awaited)]
        if any(self._is_full(stream, submission.limits) for stream in streams):
            ref.done.set(refused(b"FULL"))
            ref.accepted.set(None)
            return
        queue = self._queues.get(streams[0])
        version = queue.version if queue else ""
        request = _Request(Header.decode(submission.header), version, submission.keep_ms, [ref])
        self._requests[submission.request] = request
        self._open[version] += 1
        self._apply(submission.request, request, submission.moves)
        for item in submission.awaited:
            self._await(submission.request, request, item)
        ref.accepted.set(None)
        if submission.deadline_ms < self._alarm_ms:
            self._alarm_ms = submission.deadline_ms
            self._alarm.set()

    def _is_full(self, stream: str, limits: Mapping[str, int] | None) -> bool:
        queue = self._queues.get(stream)
        return bool(limits) and queue is not None and 0 <= limits.get(stream, -1) <= len(queue.waiting)

    def _await(self, key: str, request: _Request, item: Awaited) -> None:
        other = self._requests.get(item.request)
        if other is None:
            unknown = refused(b"LOST")
            assert unknown is not None
            self._finish(key, request, *unknown)
        elif other.state == "o":
            other.waiters.append((key, item))
        else:
            self._tell(key, item, other.state, other.payload)

    def _tell(self, key: str, item: Awaited, state: str, payload: bytes) -> None:
        request = self._requests.get(key)
        if request is None or request.state != "o":
            return
        if state == "d":
            self._fill(key, request, item.stream, item.step, item.needs, [(item.slot, payload)])
        else:
            self._finish(key, request, state, payload)

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
        queue = self._queues.get(delivery.stream)
        if queue is not None:
            queue.waiting.append(delivery)
            self._hand_out(queue)

    def _hand_out(self, queue: _Queue) -> None:
        while queue.waiting and queue.running < queue.max_ongoing:
            delivery = queue.waiting.popleft()
            if self.is_open(delivery.request):
                queue.running += 1
                queue.accept(delivery)

    def _commit(self, delivery: Delivery, state: str, payload: bytes, moves: Sequence[Move]) -> None:
        request = self._requests.get(delivery.request)
        if request is not None and request.state == "o":
            if state:
                self._finish(delivery.request, request, state, payload)
            else:
                self._apply(delivery.request, request, moves)
        queue = self._queues.get(delivery.stream)
        if queue is not None:
            queue.running -= 1
            self._hand_out(queue)

    def _finish(self, key: str, request: _Request, state: str, payload: bytes) -> None:
        request.state, request.payload = state, payload
        request.joins.clear()
        if request.keep_ms > 0:
            self._kept.append((time.monotonic() + request.keep_ms / 1000, key))
        else:
            del self._requests[key]
        if request.held is not None:
            request.held.set(False)
        followers, request.followers = request.followers, []
        for ref in followers:
            ref.settle(Outcome(state, payload))
        waiters, request.waiters = request.waiters, []
        for waiter, item in waiters:
            self._tell(waiter, item, state, payload)
        self._open[request.version] -= 1
        if not self._open[request.version]:
            self._when_idle.pop(request.version, _nothing)()

    def _close(self, key: str, state: str) -> None:
        request = self._requests.get(key)
        if request is not None and request.state == "o":
            self._finish(key, request, state, b"")

    def _follow(self, key: str, ref: Ref) -> None:
        request = self._requests.get(key)
        if request is None:
            ref.settle(lost())
        elif request.state != "o":
            ref.settle(Outcome(request.state, request.payload))
        elif ref not in request.followers:
            request.followers.append(ref)

    def _forget(self, key: str) -> None:
        request = self._requests.get(key)
        if request is not None and request.state == "o":
            request.keep_ms = 0
        else:
            self._requests.pop(key, None)

    def _emit(self, key: str, payload: bytes, gone_on: Promise) -> None:
        request = self._requests.get(key)
        if request is None or request.state != "o":
            gone_on.set(False)
            return
        for ref in request.followers:
            if isinstance(ref, ItemRef):
                ref.add(payload)
        request.ahead += 1
        if request.ahead < WINDOW:
            gone_on.set(True)
        else:
            request.held = gone_on

    def _take(self, key: str, count: int) -> None:
        request = self._requests.get(key)
        if request is None:
            return
        request.ahead -= count
        if request.held is not None and request.ahead < WINDOW:
            request.held.set(True)
            request.held = None

    # -- time --------------------------------------------------------------------------------------

    def _drop_expired(self) -> None:
        now = time.monotonic()
        while self._kept and self._kept[0][0] < now:
            self._requests.pop(self._kept.popleft()[1], None)

    def _watch_deadlines(self) -> None:
        while not self._closed:
            left_s = self._alarm_ms / 1000 - time.time()
            if self._alarm.wait(None if left_s == inf else max(0.0, left_s)):
                self._alarm.clear()
            else:
                self._alarm_ms = inf
                self._act(self._expire)

    def _expire(self) -> None:
        now_ms = time.time() * 1000
        for key, request in list(self._requests.items()):
            if request.state == "o" and request.header.deadline_ms <= now_ms:
                self._close(key, "x")
        deadlines = (one.header.deadline_ms for one in self._requests.values() if one.state == "o")
        self._alarm_ms = min(deadlines, default=inf)
        self._alarm.set()


def _nothing() -> None:
    """For versions whose end nobody waits for."""
