"""How user code is called, by replicas and by local mode alike.

``Servable`` is the user's object. ``Invoker`` calls its methods: coroutines and fast sync methods on the loop, slow
sync methods in a thread, one after another. A ``Backend`` delivers their arguments and carries out what follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, get_origin

from starlette.requests import Request
from starlette.responses import Response

from qserve.base.context import RequestContext, request_context
from qserve.calls.handles import DeploymentHandle, RayServeDeploymentHandle
from qserve.calls.responses import RESPONSES
from qserve.engine.step import Conclusion, Stepper, UserCall
from qserve.engine.streaming import ReaderGone, Sink, plain_result_of_stream, send_stream, stream_of_plain_call
from qserve.exceptions import QserveException
from qserve.wire.envelope import Answer, Header
from qserve.wire.outcome import State

FAST_S = 0.002
"""A sync method that takes less time runs on the loop: handing it to a thread and back costs 0.1 ms."""
LONGEST_BATCH = 64
COROUTINE_BATCH = 16


# -- the user's object -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A method ready to be called.

    Parameters:
      call: The bound method or the function itself.
      is_async: Whether calling it returns a coroutine.
      makes_generator: Whether calling it only makes a generator, and runs nothing yet.
      takes_request: False when it has no parameters at all, and so is called without the request.
    """

    name: str
    call: Callable[..., Any]
    is_async: bool
    makes_generator: bool
    takes_request: bool


class Servable:
    """A deployment's class or function, with an instance of the class.

    Parameters:
      func_or_class: What the user decorated.
      init_args, init_kwargs: Bound arguments, with handles in the place of bound deployments.
    """

    def __init__(
        self, func_or_class: Callable[..., Any], init_args: tuple[Any, ...], init_kwargs: Mapping[str, Any]
    ) -> None:
        self._target = func_or_class
        self._args = init_args
        self._kwargs = dict(init_kwargs)
        self._instance: Any = None
        self._methods: dict[str, Method] = {}

    @property
    def instance(self) -> Any:
        """Return the user's object; the function itself for a function deployment."""
        return self._instance

    async def construct(self) -> None:
        """Construct the instance, awaiting an ``async def __init__``; errors of user code pass through."""
        if not inspect.isclass(self._target):
            self._instance = self._target
            return
        args, kwargs = self._adapted_arguments(self._target.__init__)
        if not inspect.iscoroutinefunction(self._target.__init__):
            self._instance = self._target(*args, **kwargs)
            return
        self._instance = self._target.__new__(self._target)
        await self._target.__init__(self._instance, *args, **kwargs)

    def _adapted_arguments(self, init: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give handles of the newer kind where the constructor's annotations ask for them."""
        hints = getattr(init, "__annotations__", {})
        new_style = {name for name, hint in hints.items() if _is_new_handle(hint)}
        try:
            bound = inspect.signature(init).bind(None, *self._args, **self._kwargs)
        except TypeError:  # the arguments do not fit: the call itself raises a better message
            return self._args, self._kwargs
        for name in new_style & set(bound.arguments):
            if isinstance(bound.arguments[name], RayServeDeploymentHandle):
                bound.arguments[name] = bound.arguments[name].options(use_new_handle_api=True)
        return bound.args[1:], bound.kwargs

    async def reconfigure(self, user_config: Any) -> None:
        """Pass a user_config to the instance.

        Raises:
          QserveException: There is no ``reconfigure`` method that could take it.
        """
        method = getattr(self._instance, "reconfigure", None)
        if method is None or not inspect.isclass(self._target):
            name = getattr(self._target, "__name__", "the deployment")
            raise QserveException(
                f"user_config is set for {name!r}, so it must be a class with a method `reconfigure(self, user_config)`"
            )
        await finish(method(user_config))

    @property
    def has_health_check(self) -> bool:
        """Whether the user's class has a ``check_health``."""
        return inspect.isclass(self._target) and getattr(self._instance, "check_health", None) is not None

    async def check_health(self) -> None:
        """Call the user's ``check_health``: a coroutine function on the loop, any other in a thread of its own.

        Raises:
          Exception: What it raises.
          RuntimeError: It raises what would end the process.
        """
        check = self._instance.check_health
        try:
            if inspect.iscoroutinefunction(check):
                await check()
            else:
                await asyncio.to_thread(check)
        except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
            # unchanged, they would end the loop from within the task that awaits this
            raise RuntimeError(f"it raised {type(error).__name__}") from error

    async def destroy(self) -> None:
        """Call the user's ``__del__`` (once: the process ends without Python's own); errors pass through."""
        delete = getattr(self._instance, "__del__", None) if inspect.isclass(self._target) else None
        if delete is not None:
            await finish(delete())

    def method(self, name: str) -> Method:
        """Return a method by its name.

        Raises:
          QserveException: There is no such method; the message lists those there are.
        """
        found = self._methods.get(name)
        if found is None:
            found = self._methods[name] = self._look_up(name)
        return found

    def _look_up(self, name: str) -> Method:
        if name == "__call__" and not inspect.isclass(self._target):
            call: Any = self._target
        else:
            call = getattr(self._instance, name, None)
        if call is None or not callable(call):
            raise QserveException(
                f"Tried to call a method {name!r} that does not exist. Available methods: {self._public_methods()}."
            )
        body = call if inspect.isroutine(call) else type(call).__call__
        is_async = inspect.iscoroutinefunction(body) or inspect.iscoroutinefunction(call)
        makes_generator = inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body)
        return Method(name, call, is_async, makes_generator, _takes_anything(call))

    def _public_methods(self) -> list[str]:
        if not inspect.isclass(self._target):
            return []
        members = inspect.getmembers(self._target, callable)
        return [name for name, _ in members if not name.startswith("_")]


def _is_new_handle(hint: Any) -> bool:
    # Annotations are text under `from __future__ import annotations`. Code that travelled by value left behind the
    # names that only its annotations use, so the text cannot be evaluated here.
    if isinstance(hint, str):
        return hint.partition("[")[0].rpartition(".")[2] == DeploymentHandle.__name__
    return (get_origin(hint) or hint) is DeploymentHandle


def _takes_anything(call: Callable[..., Any]) -> bool:
    try:
        return bool(inspect.signature(call).parameters)
    except (TypeError, ValueError):  # a builtin without a signature: let the call decide
        return True


async def finish(value: Any) -> Any:
    """Await what user code returned until it is a value: coroutines, refs and responses."""
    while isinstance(value, RESPONSES) or inspect.isawaitable(value):
        value = await value
    return value


# -- its calls -------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Invocation:
    """A call on its way through user code.

    Parameters:
      call: What it stands for, once its arguments are decoded.
      began: When it began, by the monotonic clock.
      task: What runs it, where that can be cancelled.
    """

    header: Header
    step: str
    call: UserCall | None = field(default=None, kw_only=True)
    began: float = field(default=0.0, kw_only=True)
    task: asyncio.Task[None] | None = field(default=None, kw_only=True)

    @property
    def name(self) -> str:
        """The method's name for messages; the step's as long as that is all that is known."""
        return self.step if self.call is None else self.call.method

    def context(self) -> RequestContext:
        """Return what user code may know of the request."""
        header = self.header
        return RequestContext(header.trace_id, header.route, header.app, header.model_id, header.deadline_ms)


C = TypeVar("C", bound=Invocation)
C_contra = TypeVar("C_contra", bound=Invocation, contravariant=True)


class Backend(Protocol[C_contra]):
    """What delivers calls and takes their results; a call ends once, by ``reject``, ``fail`` or ``commit``."""

    def values(self, invocation: C_contra) -> Sequence[bytes]:
        """Return a call's arguments, encoded; what it raises ends the call by ``reject``."""

    def is_wanted(self, invocation: C_contra) -> bool:
        """Return whether a call that has waited for the thread of sync code shall still begin."""

    def sink(self, invocation: C_contra) -> Sink | None:
        """Return what takes the items of a streamed result; None when the caller did not ask for items."""

    def reject(self, invocation: C_contra, error: BaseException) -> None:
        """End a call whose arguments cannot be read."""

    def fail(self, invocation: C_contra, error: BaseException) -> None:
        """End a call whose code raised."""

    def commit(self, invocation: C_contra, conclusion: Conclusion) -> None:
        """End a call with all that it causes."""

    def flush(self) -> None:
        """Send what has ended: the thread of sync code is about to take the interpreter again."""


class Waiting(NamedTuple, Generic[C]):
    """A call that waits for the thread of sync code, and what runs it there."""

    invocation: C
    call: Callable[[], Any]
    context: contextvars.Context


class Pace:
    """The measured time of a sync method, which decides where it runs and how many calls are read ahead for it."""

    def __init__(self) -> None:
        self.seconds = 1.0
        self._is_measured = False

    @property
    def is_fast(self) -> bool:
        """Whether the method may run on the loop's thread; one that has not been measured may not."""
        return self.seconds < FAST_S

    @property
    def batch(self) -> int:
        """How many calls make about 2 ms of work; a slow method takes one, so that others wait elsewhere."""
        return max(1, min(LONGEST_BATCH, int(FAST_S / max(self.seconds, 1e-6))))

    def measure(self, call: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Call, and take the time into the average; one slow call is enough to be slow again."""
        began = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            seconds = time.perf_counter() - began
            self.seconds = (self.seconds + seconds) / 2 if self._is_measured else seconds
            self._is_measured = True


class _CoroutinePace(Pace):
    """The pace of coroutines, which do not hold the loop: reading ahead delays nothing."""

    batch = COROUTINE_BATCH


_COROUTINES = _CoroutinePace()


class Invoker(Generic[C]):
    """Calls the methods of one user object; all methods are called on the loop's thread unless they say otherwise.

    Parameters:
      stepper: Decodes arguments, and concludes what a result causes.
      backend: Ends the calls.
      thread_name: What the thread of sync code is called.
      waiting: Holds the calls that wait for that thread; another thread may take from its right end.
    """

    def __init__(
        self,
        servable: Servable,
        stepper: Stepper,
        backend: Backend[C],
        loop: asyncio.AbstractEventLoop,
        thread_name: str,
        waiting: deque[Waiting[C]] | None = None,
    ) -> None:
        self._servable = servable
        self._stepper = stepper
        self._backend = backend
        self._loop = loop
        self._thread = UserThread(loop, thread_name)
        self._waiting: deque[Waiting[C]] = deque() if waiting is None else waiting
        self._running: set[C] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._paces: dict[str, Pace] = {}
        self._pace = Pace()
        self.is_thread_busy = False

    def running(self) -> list[C]:
        """Return the calls that have begun and not ended; from any thread."""
        return list(self._running)

    @property
    def batch(self) -> int:
        """How many calls may be read ahead, by the pace of the method that was called last."""
        return self._pace.batch

    def close(self) -> None:
        """Let the thread of sync code end after what it runs."""
        self._thread.close()

    def begin(self, invocation: C) -> None:
        """Run a call; the backend ends it."""
        invocation.began = time.monotonic()
        self._running.add(invocation)
        token = request_context.set(invocation.context())
        try:
            call = self._open(invocation)
            if call is None:
                return
            method = self._servable.method(call.method)
            args = call.args
            if not method.takes_request and len(args) == 1 and not call.kwargs and isinstance(args[0], Request):
                args = ()
            if method.is_async:
                self._pace = _COROUTINES
                invocation.task = self._spawn(self._run_async(invocation, method, args, call.kwargs))
            else:
                self._run_sync(invocation, method, args, call.kwargs)
        except Exception as error:
            self._fail(invocation, error)
        finally:
            request_context.reset(token)

    def _open(self, invocation: C) -> UserCall | None:
        try:
            call = self._stepper.open(invocation.header, invocation.step, self._backend.values(invocation))
        except BaseException as error:  # arguments that are unpickled run code of their own
            self._running.discard(invocation)
            self._backend.reject(invocation, error)
            return None
        invocation.call = call
        return call

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- running -----------------------------------------------------------------------------------

    async def _run_async(self, invocation: C, method: Method, args: Any, kwargs: dict[str, Any]) -> None:
        try:
            value = await method.call(*args, **kwargs)
        except BaseException as error:
            self._fail(invocation, error)
        else:
            self._on_result(invocation, value)

    def _run_sync(self, invocation: C, method: Method, args: Any, kwargs: dict[str, Any]) -> None:
        pace = self._paces.get(method.name)
        if pace is None:
            pace = self._paces[method.name] = Pace()
        self._pace = pace
        if pace.is_fast or method.makes_generator:
            try:
                value = pace.measure(method.call, args, kwargs)
            except BaseException as error:
                self._fail(invocation, error)
            else:
                self._on_result(invocation, value)
            return
        call, context = partial(pace.measure, method.call, args, kwargs), contextvars.copy_context()
        if self.is_thread_busy:
            self._running.discard(invocation)
            self._waiting.append(Waiting(invocation, call, context))
        else:
            self._run_in_thread(invocation, call, context)

    def _run_in_thread(self, invocation: C, call: Callable[[], Any], context: contextvars.Context) -> None:
        self.is_thread_busy = True
        invocation.began = time.monotonic()
        self._running.add(invocation)
        self._thread.submit(call, context, partial(self._on_thread_done, invocation))

    def _on_thread_done(self, invocation: C, value: Any, error: BaseException | None) -> None:
        self.is_thread_busy = False
        self._run_next()
        if error is not None:
            self._fail(invocation, error)
        else:
            self._on_result(invocation, value)
        self._backend.flush()

    def _run_next(self) -> None:
        with contextlib.suppress(IndexError):  # none is left, or another thread has just taken the last one
            while not self.is_thread_busy:
                invocation, call, context = self._waiting.popleft()
                if self._backend.is_wanted(invocation):
                    self._run_in_thread(invocation, call, context)
                else:
                    self._commit(invocation, Conclusion(State.CANCELLED))

    # -- results -----------------------------------------------------------------------------------

    def _on_result(self, invocation: C, value: Any) -> None:
        """End a call with what user code returned; awaitables and streams have to be run first."""
        header = invocation.header
        if isinstance(value, RESPONSES) or inspect.isawaitable(value):
            invocation.task = self._spawn(self._finish(invocation, value))
        elif inspect.isgenerator(value) or inspect.isasyncgen(value) or _must_run(header, value):
            task = self._spawn(self._stream(invocation, value))
            # code in a thread cannot be cancelled
            invocation.task = task if inspect.isasyncgen(value) else None
        elif header.stream and header.answer is Answer.VALUE:
            self._fail(invocation, plain_result_of_stream(invocation.name))
        else:
            self._conclude(invocation, value)

    async def _finish(self, invocation: C, value: Any) -> None:
        try:
            value = await finish(value)
        except BaseException as error:
            self._fail(invocation, error)
        else:
            self._on_result(invocation, value)

    async def _stream(self, invocation: C, value: Any) -> None:
        try:
            sink = self._backend.sink(invocation)
            if sink is None:
                raise stream_of_plain_call(invocation.name)
            await send_stream(sink, value, invocation.header, self._stepper.encode_item, self._in_thread)
            conclusion = Conclusion(State.DONE, sink.result())
        except ReaderGone:
            self._commit(invocation, Conclusion(State.CANCELLED))
        except BaseException as error:
            self._fail(invocation, error)
        else:
            self._commit(invocation, conclusion)

    def _in_thread(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()

        def on_done(value: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

        self._thread.submit(call, contextvars.copy_context(), on_done)
        return future

    def _conclude(self, invocation: C, value: Any) -> None:
        assert invocation.call is not None
        try:
            conclusion = self._stepper.conclude(invocation.header, invocation.call, value)
        except BaseException as error:  # the value's own code runs here as well, and may raise SystemExit
            self._fail(invocation, error)
        else:
            self._commit(invocation, conclusion)

    def _commit(self, invocation: C, conclusion: Conclusion) -> None:
        self._running.discard(invocation)
        self._backend.commit(invocation, conclusion)

    def _fail(self, invocation: C, error: BaseException) -> None:
        self._running.discard(invocation)
        self._backend.fail(invocation, error)


def _must_run(header: Header, value: Any) -> bool:
    """Whether an HTTP response has to be run to have a body: streams, files, background tasks."""
    if not (header.stream or header.answer is Answer.PLAIN):
        return False
    return isinstance(value, Response) and (not hasattr(value, "body") or value.background is not None)


OnDone = Callable[[Any, BaseException | None], None]
"""Takes a value, or the error in its place."""


class UserThread:
    """The thread of sync code, which runs one call after another.

    It is a daemon, so that a call which never ends does not hold up the end of the process.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._loop = loop
        self._name = name
        self._calls: SimpleQueue[tuple[Callable[[], Any], contextvars.Context, OnDone] | None] = SimpleQueue()
        self._has_started = False

    def submit(self, call: Callable[[], Any], context: contextvars.Context, on_done: OnDone) -> None:
        """Run a call after those before it, then ``on_done`` on the loop, both in ``context``; on the loop's thread."""
        if not self._has_started:
            self._has_started = True
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        self._calls.put((call, context, on_done))

    def close(self) -> None:
        """Let the thread end after what it runs."""
        self._calls.put(None)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            call, context, on_done = item
            value, error = context.run(_outcome, call)
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self._loop.call_soon_threadsafe(partial(on_done, value, error), context=context)
            del item, call, context, on_done, value, error  # keeps nothing of a call alive while it waits for the next


def _outcome(call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return call(), None
    except BaseException as error:
        return None, error
