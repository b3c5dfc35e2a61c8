"""The instance of one deployment in local mode: runs its calls with a loop and a thread of its own."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import os
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor, Future
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from typing import Any

from starlette.requests import Request

from qserve.base.context import ReplicaContext, RequestContext, replica_here, request_context
from qserve.base.log import get_logger
from qserve.base.promise import Promise
from qserve.base.tracebacks import user_traceback
from qserve.calls.responses import RESPONSES
from qserve.deploy.registration import DeploymentCode
from qserve.engine.servable import Method, Servable
from qserve.engine.step import Conclusion, Stepper
from qserve.engine.streams import plain_result_of_stream, stream_of_plain_call
from qserve.exceptions import DeployError
from qserve.local.memory import Delivery
from qserve.local.plane import LocalPlane, record_here
from qserve.wire.application import ApplicationRecord
from qserve.wire.failure import Failure
from qserve.wire.outcome import State

log = get_logger(__name__)
STOP_FOR_S = 1.0
"""How long running code may take to notice that it is cancelled; its thread is left behind after that."""

_END: Any = object()


class Instance:
    """One deployment's object, with a loop for its async code and a thread for its sync code.

    So a call that blocks its thread waits for other deployments without holding them up.

    Parameters:
      plane: Where what calls cause is committed.
      record: The application's version.
      code: What is constructed.
    """

    def __init__(self, plane: LocalPlane, record: ApplicationRecord, deployment: str, code: DeploymentCode) -> None:
        self._plane = plane
        self._deployment = deployment
        self._config = record.deployments[deployment].user_config
        self._servable = Servable(code.func_or_class, code.init_args, code.init_kwargs or {})
        self._stepper = Stepper(record, plane.keys, plane.codec)
        self._who = ReplicaContext(record.name, deployment, f"{deployment}#{os.urandom(3).hex()}")
        self._context = contextvars.Context()
        self._context.run(record_here.set, record)
        self._context.run(replica_here.set, self._who)
        self._loop = asyncio.new_event_loop()
        self._user_thread = _UserThread(f"{deployment}-sync")
        self._thread = threading.Thread(
            target=self._context.copy().run, args=(self._live,), name=deployment, daemon=True
        )
        self._constructed = Promise()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Construct the user's object.

        Raises:
          DeployError: The constructor raises.
        """
        self._thread.start()
        self._constructed.wait()
        error = self._constructed.get_nowait()
        if error is not None:
            raise DeployError(
                f"deployment {self._deployment!r} could not be started; its constructor failed:\n"
                + user_traceback(error)
            ) from error
        who = replace(self._who, servable_object=self._servable.instance)
        self._context.run(replica_here.set, who)

    def stop(self) -> None:
        """Cancel what runs and end both threads."""
        self._user_thread.shutdown()
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(STOP_FOR_S)

    def _live(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._construct())
            except BaseException as error:
                self._constructed.set(error)
                return
            self._constructed.set(None)
            self._loop.run_forever()

    async def _construct(self) -> None:
        await self._servable.construct()
        if self._config:
            await self._servable.reconfigure(json.loads(self._config))

    # -- one call ----------------------------------------------------------------------------------

    def accept(self, delivery: Delivery) -> None:
        """Run a call soon; from any thread."""
        self._loop.call_soon_threadsafe(self._begin, delivery)

    def _begin(self, delivery: Delivery) -> None:
        header = delivery.header
        about = RequestContext(header.trace_id, header.route, header.app, header.model_id, header.deadline_ms)
        context = self._context.copy()
        context.run(request_context.set, about)
        task = self._loop.create_task(self._run(delivery), context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, delivery: Delivery) -> None:
        try:
            conclusion = await self._conclude(delivery)
        except BaseException as error:
            conclusion = self._failure(delivery, error)
        self._plane.commit(delivery, conclusion.state, conclusion.payload, conclusion.moves)

    async def _conclude(self, delivery: Delivery) -> Conclusion:
        header = delivery.header
        if header.expired():
            return Conclusion(State.EXPIRED)
        call = self._stepper.open(header, delivery.step, delivery.values)
        method = self._servable.method(call.method)
        value = await self._call(delivery, method, call.args, call.kwargs)
        while isinstance(value, RESPONSES) or inspect.isawaitable(value):
            value = await value
        if isinstance(value, _Raised):
            return self._failure(delivery, value.error)
        if inspect.isgenerator(value) or inspect.isasyncgen(value):
            await self._stream(delivery, call.method, value)
            return Conclusion(State.DONE)
        if header.stream:
            raise plain_result_of_stream(call.method)
        return self._stepper.conclude(header, call, value)

    async def _call(self, delivery: Delivery, method: Method, args: Any, kwargs: dict[str, Any]) -> Any:
        if not method.takes_request and not kwargs and len(args) == 1 and isinstance(args[0], Request):
            args = ()
        call = partial(method.call, *args, **kwargs)
        if method.is_async:
            return await call()
        return call() if method.makes_generator else await self._in_thread(delivery, call)

    async def _in_thread(self, delivery: Delivery, call: Callable[[], Any]) -> Any:
        def run() -> Any:
            if not self._plane.is_open(delivery):  # it was cancelled while it waited for the thread
                return _Raised(_Gone())
            try:
                return call()
            except BaseException as error:  # handed over as a value: a future refuses StopIteration
                return _Raised(error)

        return await self._loop.run_in_executor(self._user_thread, contextvars.copy_context().run, run)

    async def _stream(self, delivery: Delivery, method: str, generator: Any) -> None:
        if not delivery.header.stream:
            raise stream_of_plain_call(method)
        async with aclosing(self._items(delivery, generator)) as items:
            async for item in items:
                if not await self._plane.emit(delivery, self._stepper.encode_item(item)):
                    raise _Gone

    async def _items(self, delivery: Delivery, generator: Any) -> AsyncGenerator[Any, None]:
        if inspect.isasyncgen(generator):
            async with aclosing(generator):
                async for item in generator:
                    yield item
            return
        try:
            while (item := await self._in_thread(delivery, partial(next, generator, _END))) is not _END:
                if isinstance(item, _Raised):
                    raise item.error
                yield item
        finally:
            generator.close()

    def _failure(self, delivery: Delivery, error: BaseException) -> Conclusion:
        if not self._plane.is_open(delivery):  # nobody asks any more, and the error may come from just that
            return Conclusion(State.CANCELLED)
        failure = Failure.of(error, self._deployment)
        log.error("%s failed: %s", self._deployment, failure.message, exc_info=error)
        return Conclusion(State.FAILED, failure.encode())


@dataclass(frozen=True)
class _Raised:
    error: BaseException


class _Gone(Exception):
    """Raised where the request of the running code has ended."""


class _UserThread(Executor):
    """One thread for sync code; a daemon, so that a call which never ends cannot hold up the program's end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._started = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a function after those before it; called on one thread only."""
        if not self._started:
            self._started = True
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        future: Future[Any] = Future()
        self._calls.put((future, partial(fn, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the thread end after what it runs."""
        self._calls.put(None)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            if future.set_running_or_notify_cancel():
                future.set_result(call())
