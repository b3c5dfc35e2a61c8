"""Call user code, for replicas and for local mode alike.

``Invoker`` calls the methods of a ``Servable``: coroutines and fast sync methods on the loop, others in a thread, one
after another. A ``Backend`` delivers their arguments and carries out what follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import inspect
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from math import inf
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from qserve.base import afterwards
from qserve.base import context as contexts
from qserve.base.context import RequestContext, Run, Scope, request_context, scope_here
from qserve.base.forks import end_child, end_if_child, lasting_threads, on_fork
from qserve.base.log import get_logger, of_request
from qserve.base.loop_at_hand import seen_in_thread
from qserve.base.once import may_say
from qserve.base.promise import T
from qserve.base.tracebacks import frames_of_coroutine, frames_of_thread, place_in
from qserve.calls.not_value import add_advice
from qserve.calls.progress import reports
from qserve.calls.ref import current
from qserve.calls.responses import RESPONSES
from qserve.engine.servable import Method, Servable
from qserve.engine.step import Conclusion, Stepper, UserCall, timing
from qserve.engine.streaming import ReaderGone, SessionSink, Sink, send_stream
from qserve.exceptions import BrokerFull, BrokerUnavailable, RequestCancelledError, StoreUnavailable
from qserve.http.render import explain
from qserve.http.websocket import Conversation
from qserve.tracing.switch import switch
from qserve.wire.codec import Heavy, light_only
from qserve.wire.envelope import Answer, Header
from qserve.wire.outcome import State
from qserve.wire.times import StepTime, step_time

if TYPE_CHECKING:
    from qserve.tracing.spans import Spans, StepSpan

log: Final = get_logger(__name__)


_BESIDE = 4
"""How many large values one replica fetches or stores at a time, where that takes long."""
_PAUSE_S, _LONGEST_PAUSE_S, _SAID_FOR_S = 0.1, 2.0, 60.0
_AWAY = (StoreUnavailable, BrokerUnavailable, BrokerFull)
"""Raised while a store of values cannot be reached, or is full."""
_VALUES = frozenset((type(None), bool, int, float, str, bytes, list, dict, tuple))
"""The types of most results. They are not streams, and nothing has to be awaited."""


@dataclass(slots=True, eq=False)
class Invocation:
    """A call on its way through user code.

    Parameters:
      call: The call, once its arguments are decoded.
      scope: Where user code notes what is released at the end. It is not part of this object, which the contexts that
        hold it would keep.
      began: When it began, by the monotonic clock.
      task: What runs it on the loop, if anything.
      blocks: Whether its code may run in a thread, where it goes on when the task is cancelled.
      ended: The state in which its request has ended meanwhile, cancelled or expired; "" as long as it is wanted.
      ended_at: When that became known, by the monotonic clock.
      is_observed: Whether somebody follows its request: then it says when it begins and ends.
      run: What the thread of sync code calls, in ``context``.
      background: What its response wants to have run once it is sent.
      span: Its span; None if there are none.
    """

    header: Header
    step: str
    call: UserCall | None = field(default=None, kw_only=True)
    scope: Scope = field(default_factory=Scope, kw_only=True)
    began: float = field(default=0.0, kw_only=True)
    task: asyncio.Task[None] | None = field(default=None, kw_only=True)
    blocks: bool = field(default=False, kw_only=True)
    ended: str = field(default="", kw_only=True)
    ended_at: float = field(default=inf, kw_only=True)
    is_observed: bool = field(default=False, kw_only=True)
    run: Callable[[], Any] | None = field(default=None, kw_only=True)
    context: contextvars.Context | None = field(default=None, kw_only=True)
    background: Callable[[], Awaitable[None]] | None = field(default=None, kw_only=True)
    span: StepSpan | None = field(default=None, kw_only=True)
    _request: RequestContext | None = field(default=None, init=False)

    @property
    def name(self) -> str:
        """The method's name for messages; the step's as long as that is all that is known."""
        return self.step if self.call is None else self.call.method

    @property
    def attempt(self) -> int:
        """Which try of its step this is, counted from 1."""
        return 1

    def queued_ms(self) -> float | None:
        """Return how long it has waited for a replica; None if that is not known."""
        return None

    def time(self) -> StepTime:
        """Return how long it has waited, for a replica and for its turn there, and run until now."""
        here, run_ms = contexts.replica_here.get() or contexts.replica, 1000 * (time.monotonic() - self.began)
        return step_time(here.deployment if here else "", self.name, (self.queued_ms() or run_ms) - run_ms, run_ms)

    def trace(self, spans: Spans) -> StepSpan:
        """Begin its span, which is the parent of what user code does."""
        call, here = self.call, contexts.replica_here.get() or contexts.replica
        name, tag = ("", "") if here is None else (here.deployment, here.replica_tag)
        method, plan, index = (self.step, None, 0) if call is None else (call.method, call.plan, call.index)
        step = (name, tag, self.step, method, self.attempt, self.queued_ms(), plan, index)
        self.span = span = spans.process(self.header, step)
        self.request().carried = span.carried
        span.attach()
        return span

    def request(self) -> RequestContext:
        """Return what user code may know of the request."""
        found = self._request
        if found is None:
            header = self.header
            found = self._request = RequestContext(
                header.trace_id, header.route, header.app, header.model_id, header.deadline_ms, False,
                (self.this_run(),), header.carried,
            )  # fmt: skip
        return found

    def observe(self) -> None:
        """Have it say when it begins and ends."""
        self.is_observed = True

    def this_run(self) -> Run:
        """Return what tells this run of the step from others."""
        return Run(self.header.request_id, self.step, "", b"", 1)

    def end(self, state: str) -> None:
        """Notify its code that the request was cancelled or has expired: a coroutine at its next ``await``."""
        if not self.ended:  # a second cancellation would end what the code does about the first
            how = "its deadline has passed" if state == State.EXPIRED else "its request was cancelled"
            log.info("%s has to end: %s", self.name, how, extra=of_request(self.header.trace_id))
            self.ended, self.ended_at = state, time.monotonic()
            self.request().cancel()
            self.cancel_task()

    def cancel_task(self) -> None:
        if self.task is not None:
            # not at once: a task that is cancelled before its first step runs nothing, not even what ends the call
            self.task.get_loop().call_soon(self.task.cancel)


C = TypeVar("C", bound=Invocation)
C_contra = TypeVar("C_contra", bound=Invocation, contravariant=True)


class Backend(Protocol[C_contra]):
    """Delivers calls and takes their results; a call ends once, by ``reject``, ``fail`` or ``commit``."""

    def values(self, invocation: C_contra) -> Sequence[bytes]:
        """Return a call's arguments, encoded; what it raises ends the call by ``reject``."""

    def sink(self, invocation: C_contra) -> Sink | None:
        """Return what takes the items of a streamed result; None when the caller did not ask for items."""

    def wire(self, invocation: C_contra) -> SessionSink:
        """Return what carries the session of a WebSocket."""

    def reject(self, invocation: C_contra, error: BaseException) -> None:
        """End a call whose arguments cannot be read."""

    def fail(self, invocation: C_contra, error: BaseException) -> None:
        """End a call whose code raised."""

    def commit(self, invocation: C_contra, conclusion: Conclusion) -> None:
        """End a call with all that it causes."""

    def flush(self) -> None:
        """Send what has ended: the thread of sync code is about to take the interpreter again."""


class Invoker(Generic[C]):
    """Calls the methods of one user object; all methods are called on the loop's thread unless they say otherwise.

    Parameters:
      start: Each call runs in a copy of this context, so that nothing which one call sets is seen by another.
      thread_name: The name of the thread of sync code.
      waiting: Holds the calls that wait for that thread; another thread may take from its right end.
    """

    def __init__(
        self,
        servable: Servable,
        stepper: Stepper,
        backend: Backend[C],
        loop: asyncio.AbstractEventLoop,
        start: contextvars.Context,
        thread_name: str,
        waiting: deque[C] | None = None,
    ) -> None:
        self._servable = servable
        self._stepper = stepper
        self._backend = backend
        self._loop = loop
        self._start = start
        self._thread = UserThread(loop, thread_name)
        self._waiting: deque[C] = deque() if waiting is None else waiting
        self._running: set[C] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_method: Method | None = None
        self.is_thread_busy: bool = False
        self._threads: ThreadPoolExecutor | None = None
        on_fork(self)

    def leave_to_parent(self) -> None:
        """In a forked child: what comes back from user code ends that process."""
        reports.only_adds = True
        self._fail = lambda invocation, error: end_child(error)  # type: ignore[method-assign]
        self._on_result = self._commit = lambda *result: end_child(None)  # type: ignore[method-assign, assignment]

    def running(self) -> list[C]:
        """Return the calls that have begun and not ended; from any thread."""
        return list(self._running)

    def place_of(self, invocation: C) -> str:
        """Return where the code of a call stands, for messages; from any thread."""
        task = invocation.task
        if task is None or invocation.blocks:
            return place_in(frames_of_thread(self._thread.ident))
        return place_in(frames_of_coroutine(task.get_coro()))

    @property
    def batch(self) -> int:
        """How many calls may be read ahead, by the pace of the method that was called last."""
        return 1 if self._last_method is None else self._last_method.batch

    def close(self) -> None:
        """Let the thread of sync code end after what it runs."""
        self._thread.close()

    def end(self, request_id: str, state: str) -> bool:
        """Notify the calls of a request that it was cancelled or has expired; return whether there are any.

        Those that wait for the thread of sync code never begin.
        """
        calls = [call for call in (*self._running, *self._waiting.copy()) if call.header.request_id == request_id]
        for invocation in calls:
            invocation.end(state)
        return bool(calls)

    def observe(self, request_id: str) -> None:
        """Have the calls of a request say when they begin and end: somebody follows it."""
        for invocation in (*self._running, *self._waiting.copy()):
            if invocation.header.request_id == request_id:
                invocation.observe()
                if invocation in self._running:
                    self._announce(invocation)

    def _announce(self, invocation: C) -> None:
        if current.installed is not None:
            reports.begin(current.installed, *invocation.request().runs)

    def begin(self, invocation: C) -> None:
        """Run a call; the backend ends it."""
        self._start.copy().run(self._begin, invocation)

    def _begin(self, invocation: C) -> None:
        invocation.began = time.monotonic()
        self._running.add(invocation)
        request_context.set(invocation.request())
        scope_here.set(invocation.scope)
        try:
            try:
                values = self._backend.values(invocation)
                if self._stepper.is_heavy(values):
                    self._spawn(invocation, self._open_beside(invocation, values))
                    return
                call = self._stepper.open(invocation.header, invocation.step, values)
            except _AWAY:
                self._spawn(invocation, self._open_beside(invocation, values))
            except BaseException as error:  # arguments that are unpickled run code of their own
                self._reject(invocation, error)
            else:
                self._opened(invocation, call)
        except BaseException as error:
            self._fail(invocation, error)

    async def _open_beside(self, invocation: C, values: Sequence[bytes]) -> None:
        """Fetch values for which that takes long in a thread; other calls go on meanwhile."""
        try:
            try:
                call = await self._beside(
                    invocation, partial(self._stepper.open, invocation.header, invocation.step, values)
                )
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                self._reject(invocation, error)
            else:
                invocation.task = None
                self._opened(invocation, call)
        except BaseException as error:
            self._fail(invocation, error)

    async def _beside(self, invocation: C, call: Callable[[], T]) -> T:
        """Read or store values in a thread; while their store is away, this tries again until the request's deadline.

        The request was accepted, and its code may have run: it must not fail because a store is restarted.
        """
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_BESIDE, "qserve-values")
        pause_s = _PAUSE_S
        while True:
            try:
                return await self._loop.run_in_executor(self._threads, contextvars.copy_context().run, call)
            except _AWAY as error:
                if invocation.header.expired():
                    raise
                if may_say("a store of values is away", _SAID_FOR_S):
                    log.warning("%s waits for a store of large values: %s", invocation.name, error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _reject(self, invocation: C, error: BaseException) -> None:
        self._discard(invocation)
        if switch.spans is not None:
            invocation.trace(switch.spans).ran(error)
        self._backend.reject(invocation, error)

    def _opened(self, invocation: C, call: UserCall) -> None:
        invocation.call = call
        if switch.spans is not None:
            invocation.trace(switch.spans)
        self._call(invocation, call)

    # -- running -----------------------------------------------------------------------------------

    def _call(self, invocation: C, call: UserCall) -> None:
        method = self._last_method = self._servable.method(call.method)
        method.calls += 1
        args = call.args
        if not method.takes_request and len(args) == 1 and not call.kwargs and isinstance(args[0], Request):
            args = ()
        if invocation.is_observed and (method.is_async or method.is_fast or method.makes_generator):
            self._announce(invocation)
        if method.is_async:
            self._spawn(invocation, self._await(invocation, method.call(*args, **call.kwargs)))
        elif method.is_fast or method.makes_generator:
            self._on_result(invocation, method.measure(args, call.kwargs))
        else:
            invocation.run = partial(method.measure, args, call.kwargs)
            invocation.context = contextvars.copy_context()
            self._running.discard(invocation)
            self._waiting.append(invocation)
            self._run_next()

    def _spawn(self, invocation: C, coroutine: Coroutine[Any, Any, None]) -> None:
        invocation.task = task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if invocation.ended:  # while it ran in the thread
            invocation.cancel_task()

    async def _await(self, invocation: C, awaitable: Awaitable[Any]) -> None:
        try:
            value = await awaitable
        except BaseException as error:
            self._fail(invocation, error)
        else:
            self._on_result(invocation, value)

    def _run_next(self) -> None:
        """Begin the next call in the thread of sync code, if that is free."""
        with contextlib.suppress(IndexError):  # none is left, or another thread has just taken the last one
            while not self.is_thread_busy:
                invocation = self._waiting.popleft()
                if invocation.ended:
                    self._commit(invocation, Conclusion(invocation.ended))
                    continue
                self.is_thread_busy = True
                invocation.began = time.monotonic()
                self._running.add(invocation)
                if invocation.is_observed:
                    self._announce(invocation)
                assert invocation.run is not None and invocation.context is not None
                enter: Callable[..., Any] = invocation.context.run
                self._thread.submit(partial(enter, invocation.run), partial(enter, self._on_thread_done, invocation))

    def _on_thread_done(self, invocation: C, value: Any, error: BaseException | None) -> None:
        self.is_thread_busy = False
        self._run_next()
        if error is not None:
            self._fail(invocation, error)
        else:
            self._on_result(invocation, value)
        self._backend.flush()

    # -- results -----------------------------------------------------------------------------------

    def _on_result(self, invocation: C, value: Any) -> None:
        """End a call with what user code returned; awaitables and streams have to be run first."""
        header = invocation.header
        wants_items = header.stream and header.answer is Answer.VALUE and _is_last(invocation)
        if type(value) in _VALUES and not wants_items:
            self._conclude(invocation, value)
        elif isinstance(value, RESPONSES) or inspect.isawaitable(value):
            self._spawn(invocation, self._await(invocation, value))
        elif inspect.isgenerator(value) or inspect.isasyncgen(value) or _must_run(header, value):
            if getattr(value, "background", None) is not None:
                invocation.background, value = value.background, copy.copy(value)
                value.background = None
                self._on_result(invocation, value)
                return
            invocation.blocks = not inspect.isasyncgen(value)
            self._spawn(invocation, self._stream(invocation, value))
        elif isinstance(value, Conversation):
            self._spawn(invocation, self._converse(invocation, value))
        elif wants_items:
            text = (
                f"Called method {invocation.name!r} with `handle.options(stream=True)` but it did not return a"
                " generator. Call it without stream=True, or make it yield its items."
            )
            self._fail(invocation, TypeError(text))
        else:
            self._conclude(invocation, value)

    async def _stream(self, invocation: C, value: Any) -> None:
        try:
            sink = self._backend.sink(invocation) if _is_last(invocation) else None
            if sink is None:
                raise TypeError(
                    f"Method {invocation.name!r} returned a generator. You must use `handle.options(stream=True)` to"
                    " call generators on a deployment, and iterate what `remote` returns."
                )
            # one context for all items, which is not the one of this task: they are never entered at the same time
            in_thread = partial(self._in_thread, contextvars.copy_context())
            await send_stream(
                sink, value, invocation.header, self._stepper.encode_item, in_thread, partial(_timing, invocation)
            )
            conclusion = Conclusion(State.DONE, sink.result())
        except ReaderGone:
            self._commit(invocation, Conclusion(State.CANCELLED))
        except BaseException as error:
            self._fail(invocation, error)
        else:
            self._commit(invocation, conclusion)

    async def _converse(self, invocation: C, conversation: Conversation) -> None:
        """Run a WebSocket to its end; a client that is not accepted gets the response as of any other request."""
        wire = self._backend.wire(invocation)
        try:
            response = await conversation.run(wire)
        except ReaderGone:
            self._commit(invocation, Conclusion(State.CANCELLED))
        except BaseException as error:
            self._fail(invocation, error)
        else:
            if response is None:
                self._commit(invocation, Conclusion(State.DONE, wire.result()))
            else:
                self._conclude(invocation, response)
        finally:
            wire.close()

    def _in_thread(self, context: contextvars.Context, call: Callable[[], Any]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()

        def on_done(value: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

        self._thread.submit(partial(context.run, call), on_done)
        return future

    def _conclude(self, invocation: C, value: Any) -> None:
        assert invocation.call is not None
        header = invocation.header
        try:
            time = invocation.time() if _is_timed(header) else None
            with light_only():
                conclusion = self._stepper.conclude(header, invocation.call, value, time)
        except (Heavy, *_AWAY):
            conclude = partial(self._stepper.conclude, header, invocation.call, value, time)
            self._spawn(invocation, self._conclude_beside(invocation, conclude))
        except BaseException as error:  # the value's own code runs here as well, and may raise SystemExit
            self._fail(invocation, error)
        else:
            self._commit(invocation, conclusion)

    async def _conclude_beside(self, invocation: C, conclude: Callable[[], Conclusion]) -> None:
        """Store a result for which that takes long in a thread; other calls go on meanwhile."""
        storing = asyncio.ensure_future(self._beside(invocation, conclude))
        try:
            conclusion = await asyncio.shield(storing)
        except BaseException as error:
            storing.add_done_callback(self._drop)
            self._fail(invocation, error)
        else:
            self._commit(invocation, conclusion)

    def _drop(self, storing: asyncio.Future[Conclusion]) -> None:
        """Remove what was stored for a call whose request had ended meanwhile."""
        if not storing.cancelled() and storing.exception() is None:
            self._stepper.drop(storing.result())

    def _commit(self, invocation: C, conclusion: Conclusion) -> None:
        self._discard(invocation)
        if invocation.span is not None:
            invocation.span.ran()
        if invocation.ended:  # the value of code that had to stop is not a result
            self._stepper.drop(conclusion)
            conclusion = Conclusion(invocation.ended)
        self._backend.commit(invocation, conclusion)
        if invocation.background is not None and not invocation.ended:
            afterwards.keep(self._loop.create_task(_run_background(invocation, invocation.background)))

    def _fail(self, invocation: C, error: BaseException) -> None:
        if not invocation.ended:
            self._discard(invocation)
            with contextlib.suppress(Exception):  # an error may have a text that raises
                add_advice(error)
                explain(error)
            if invocation.span is not None:
                invocation.span.ran(error)
            self._backend.fail(invocation, error)
            return
        if not isinstance(error, asyncio.CancelledError | RequestCancelledError):
            log.warning("%s failed after its request had ended: %r", invocation.name, error, exc_info=error)
        self._commit(invocation, Conclusion(invocation.ended))

    def _discard(self, invocation: C) -> None:
        self._running.discard(invocation)
        if reports.open:  # before its end is sent
            invocation.is_observed = reports.end(*invocation.request().runs)
        invocation.scope.is_over = True
        if invocation.scope.callbacks:
            invocation.scope.release()


def _is_timed(header: Header) -> bool:
    return header.carried is not None and header.carried.is_timed and header.answer is not Answer.VALUE


def _timing(invocation: Invocation) -> list[list[str]]:
    """Return the header with the times of a stream's steps, until its head is sent."""
    if invocation.call is None or not _is_timed(invocation.header):
        return []
    return [timing(invocation.call, invocation.time())]


def _is_last(invocation: Invocation) -> bool:
    """Return whether the result of a call is that of its request."""
    call = invocation.call
    return call is None or call.plan is None or call.plan.output == call.index


def _must_run(header: Header, value: Any) -> bool:
    """Whether an HTTP response has to be run to have a body, as streams and files have, or has a background task."""
    if header.answer is Answer.VALUE and not header.stream:
        return False
    if not isinstance(value, Response):
        return False
    has_body = header.answer is Answer.JSON or hasattr(value, "body")
    return not has_body or getattr(value, "background", None) is not None


async def _run_background(invocation: Invocation, background: Callable[[], Awaitable[None]]) -> None:
    header = invocation.header
    # its calls do not end at the deadline of the request, which has ended
    request_context.set(
        RequestContext(header.trace_id, header.route, header.app, header.model_id, carried=header.carried)
    )
    try:
        await background()
    except BaseException as error:
        end_if_child(error)
        log.error(
            "%s has sent its response, and its background task failed: %r", invocation.name, error, exc_info=error
        )
    else:
        end_if_child(None)


def run_loop(loop: asyncio.AbstractEventLoop, until: asyncio.Future[T]) -> T:
    """Run the loop until a future is done, and return its result.

    asyncio ends a loop when a task or a callback raises SystemExit. Those that user code has made itself are logged
    instead, as other errors of tasks are: code that awaits such a task gets the error, and other calls go on.
    """
    while True:
        try:
            return loop.run_until_complete(until)
        except (SystemExit, KeyboardInterrupt) as error:
            if until.done():
                raise
            log.error(
                "a task or callback that user code made raised %s: %s", type(error).__name__, error, exc_info=error
            )
        except RuntimeError as error:
            if until.done() or loop.is_closed():
                raise
            log.error("user code has stopped the event loop of its replica, which goes on: %s", error)


OnDone = Callable[[Any, BaseException | None], None]
"""Takes a value, or the error in its place."""


class UserThread:
    """The thread of sync code, which runs one call after another.

    It is a daemon, so that a call which never ends does not hold up the end of the process.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._loop = loop
        self._seen = seen_in_thread(loop)
        self._calls: SimpleQueue[tuple[Callable[[], Any], OnDone] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    @property
    def ident(self) -> int | None:
        return self._thread.ident

    def submit(self, call: Callable[[], Any], on_done: OnDone) -> None:
        """Run a call after those before it, then ``on_done`` on the loop; called on the loop's thread."""
        if self._thread.ident is None:
            self._thread.start()
        self._calls.put((call, on_done))

    def close(self) -> None:
        self._calls.put(None)

    def _work(self) -> None:
        lasting_threads.add(threading.get_ident())
        while (item := self._calls.get()) is not None:
            call, on_done = item
            asyncio.set_event_loop(self._seen)  # each time: the end of asyncio.run removes it
            value, error = _outcome(call)
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self._loop.call_soon_threadsafe(on_done, value, error)
            del item, call, on_done, value, error  # keeps nothing of a call alive while it waits for the next


def _outcome(call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return call(), None
    except BaseException as error:
        return None, error
