"""One replica: takes deliveries, runs the user's code, commits what follows."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from qserve.context import RequestContext, request_context
from qserve.engine.servable import Method, Servable
from qserve.engine.step import Call, Conclusion, Stepper
from qserve.keys import Keys
from qserve.log import get_logger
from qserve.plane import functions
from qserve.plane.loop import LoopPlane
from qserve.plane.transport import Delivery
from qserve.ref import DeploymentResponse, Ref, RefTask
from qserve.registry import ApplicationRecord
from qserve.settings import Settings
from qserve.wire.envelope import Header
from qserve.wire.failure import Failure

log = get_logger(__name__)
_SLOTS = [str(number).encode() for number in range(256)]
_REFS = (Ref, RefTask, DeploymentResponse)
_FAST_S = 0.002
_BATCH = 64


@dataclass(slots=True)
class Work:
    """A delivery that runs."""

    delivery: Delivery
    header: Header
    step: str
    call: Call | None = None


class Pace:
    """The measured time of a sync method, which decides where it runs and how far to read ahead.

    A method that takes less than 2 ms runs on the loop's thread, because handing it to another and back
    costs 0.1 ms; anything slower, and anything not yet measured, runs in a thread of its own, so that the
    loop goes on answering for it.
    """

    def __init__(self) -> None:
        self.seconds = 1.0

    def note(self, seconds: float) -> None:
        """Take a measurement into the average."""
        self.seconds += (seconds - self.seconds) / 2 if self.seconds < 1.0 else seconds - self.seconds

    @property
    def is_fast(self) -> bool:
        """Whether it may run on the loop's thread."""
        return self.seconds < _FAST_S

    @property
    def batch(self) -> int:
        """How many calls make about 2 ms of work; a slow method takes one, so that others wait elsewhere."""
        return max(1, min(_BATCH, int(_FAST_S / max(self.seconds, 1e-6))))


class Replica:
    """Runs the calls of one deployment in this process.

    Parameters:
      name: The consumer's name in the group; unique for ever.
      deployment: The deployment's name.
      record: The application's version that this replica runs.
      on_room: Called when a call has ended and another may be fetched.
    """

    def __init__(
        self,
        *,
        name: str,
        deployment: str,
        servable: Servable,
        stepper: Stepper,
        plane: LoopPlane,
        keys: Keys,
        settings: Settings,
        record: ApplicationRecord,
    ) -> None:
        self.name = name
        self.deployment = deployment
        self.stream = record.stream(keys, deployment)
        self.plane = plane
        self.settings = settings
        self.loop = plane.loop
        self.on_room: Callable[[], None] = lambda: None
        self._servable = servable
        self._stepper = stepper
        self._keys = keys
        self._max_ongoing = record.deployments[deployment].max_ongoing
        self._grace_s = record.deployments[deployment].grace_s
        self._running = 0
        self._in_thread = 0
        self._paces: dict[str, Pace] = {}
        self._pace = Pace()
        self._suspects: deque[Work] = deque()
        self._alone = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="user-code")
        self._tasks: set[asyncio.Task[None]] = set()

    def room(self) -> int:
        """How many calls may be fetched now."""
        if self._suspects or self._alone or self._in_thread:
            return 0
        return min(self._max_ongoing - self._running, self._pace.batch)

    # -- taking ------------------------------------------------------------------------------------

    def accept(self, delivery: Delivery) -> None:
        """Take a delivery: run it, or end its request when it cannot or must not run any more."""
        fields = delivery.fields
        try:
            header = Header.decode(fields[b"h"])
            work = Work(delivery, header, fields[b"s"].decode())
        except Exception as error:
            log.error("a message of queue %s cannot be read and is dropped: %s", self.stream, error)
            delivery.ack()
            return
        self._running += 1
        self._idle.clear()
        if header.expired():
            self._commit(work, Conclusion("x"))
        elif b"x" in fields:
            # its replica died: it runs alone, so that it cannot take its neighbours with it again
            self._suspects.append(work)
            self._run_suspect()
        else:
            self._begin(work)

    def _run_suspect(self) -> None:
        if self._suspects and not self._alone and self._running == len(self._suspects):
            self._alone = True
            self._begin(self._suspects.popleft())

    def _begin(self, work: Work) -> None:
        fields = work.delivery.fields
        values = []
        for slot in _SLOTS:
            if slot not in fields:
                break
            values.append(fields[slot])
        token = request_context.set(_context(work.header))
        try:
            work.call = self._stepper.open(work.header, work.step, values)
            method = self._servable.method(work.call.method)
            args = work.call.args
            if not method.takes_request and len(args) == 1 and not work.call.kwargs and isinstance(args[0], Request):
                args = ()
            if method.is_async:
                self._spawn(self._run_async(work, method, args))
            else:
                self._run_sync(work, method, args)
        except Exception as error:
            self._fail(work, error)
        finally:
            request_context.reset(token)

    # -- running -----------------------------------------------------------------------------------

    def _spawn(self, coroutine: Any) -> None:
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_async(self, work: Work, method: Method, args: Any) -> None:
        assert work.call is not None
        self._pace = _ASYNC_PACE
        try:
            value = await method.call(*args, **work.call.kwargs)
            while isinstance(value, _REFS):
                value = await value
        except BaseException as error:
            self._fail(work, error)
        else:
            self._end(work, value)

    def _run_sync(self, work: Work, method: Method, args: Any) -> None:
        assert work.call is not None
        pace = self._paces.get(method.name)
        if pace is None:
            pace = self._paces[method.name] = Pace()
        self._pace = pace
        if pace.is_fast:
            began = time.perf_counter()
            try:
                value = method.call(*args, **work.call.kwargs)
            except BaseException as error:
                self._fail(work, error)
            else:
                self._end_or_wait(work, value)
            pace.note(time.perf_counter() - began)
            return
        self._in_thread += 1
        context = contextvars.copy_context()
        future = self._thread.submit(context.run, _measured, pace, method.call, args, work.call.kwargs)
        future.add_done_callback(lambda done: self.loop.call_soon_threadsafe(self._on_thread_done, work, done))

    def _on_thread_done(self, work: Work, done: Any) -> None:
        self._in_thread -= 1
        error = done.exception()
        if error is not None:
            self._fail(work, error)
        else:
            self._end_or_wait(work, done.result())
        self.plane.flush()

    def _end_or_wait(self, work: Work, value: Any) -> None:
        if isinstance(value, _REFS):
            self._spawn(self._end_later(work, value))
        else:
            self._end(work, value)

    async def _end_later(self, work: Work, value: Any) -> None:
        try:
            while isinstance(value, _REFS):
                value = await value
        except BaseException as error:
            self._fail(work, error)
        else:
            self._end(work, value)

    # -- ending ------------------------------------------------------------------------------------

    def _end(self, work: Work, value: Any) -> None:
        assert work.call is not None
        try:
            conclusion = self._stepper.conclude(work.header, work.call, value)
        except Exception as error:
            self._fail(work, error)
        else:
            self._commit(work, conclusion)

    def _fail(self, work: Work, error: BaseException) -> None:
        failure = Failure.of(error, self.deployment)
        token = request_context.set(_context(work.header))
        log.error(
            "%s failed: %s",
            work.step if work.call is None else work.call.method,
            failure.message,
            exc_info=error,
        )
        request_context.reset(token)
        self._commit(work, Conclusion("f", failure.encode()))

    def _commit(self, work: Work, conclusion: Conclusion) -> None:
        """Crash before this is sent: the call is pending and runs again elsewhere. Crash after: it has moved on."""
        tag, header = work.delivery.delivery_tag, work.header
        command = functions.commit(
            tag.stream,
            self._keys.request(header.request_id),
            tag.entry_id,
            header.request_id,
            tag.entry_id.decode(),
            work.step,
            conclusion.moves,
            conclusion.state,
            conclusion.payload,
        )
        self.plane.post(command, lambda reply: self._on_committed(work, reply))
        self._running -= 1
        self._alone = False
        if not self._running:
            self._idle.set()
        self._run_suspect()
        self.on_room()

    def _on_committed(self, work: Work, reply: Any) -> None:
        work.delivery.channel.qos.settle(work.delivery.delivery_tag)
        if reply != b"OK" and log.isEnabledFor(logging.DEBUG):
            log.debug("the commit of request %s was answered %r", work.header.request_id, reply)

    async def drain(self) -> None:
        """Let what runs finish, for as long as the deployment's grace says; commits included."""
        try:
            await asyncio.wait_for(self._idle.wait(), self._grace_s)
        except TimeoutError:
            log.warning(
                "%d calls still run after %.1f s; they are handed over",
                self._running,
                self._grace_s,
            )
        await self.plane.settled(2.0)


class _AsyncPace(Pace):
    """Coroutines do not hold the loop: reading ahead delays nothing."""

    batch = 16


_ASYNC_PACE = _AsyncPace()


def _measured(pace: Pace, call: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    began = time.perf_counter()
    try:
        return call(*args, **kwargs)
    finally:
        pace.note(time.perf_counter() - began)


def _context(header: Header) -> RequestContext:
    return RequestContext(header.trace_id, header.route, header.app, header.model_id, header.deadline_ms)
