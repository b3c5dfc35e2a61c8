"""One replica: takes deliveries, runs the user's code, commits what follows."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from starlette.requests import Request

from qserve.base import failpoints
from qserve.base.context import request_context
from qserve.base.keys import Keys
from qserve.base.log import get_logger
from qserve.base.settings import Settings
from qserve.broker.connection import Client
from qserve.broker.library import Command
from qserve.calls.responses import RESPONSES
from qserve.engine.servable import Method, Servable
from qserve.engine.step import Conclusion, Stepper
from qserve.engine.streams import is_generator, plain_result_of_stream
from qserve.wire.application import ApplicationRecord
from qserve.wire.outcome import State
from qserve_workers.replica.ending import Ending
from qserve_workers.replica.exit_codes import Exit
from qserve_workers.replica.models import ModelAdvertiser
from qserve_workers.replica.pace import CoroutinePace, Pace
from qserve_workers.replica.plane import LoopPlane
from qserve_workers.replica.reader import Backlog, StreamReader
from qserve_workers.replica.streaming import ReaderGone, answers_http, must_run, stream, taker_of
from qserve_workers.replica.work import Delivery, Work

log = get_logger(__name__)


class Replica:
    """Runs the calls of one deployment in this process.

    Parameters:
      name: The consumer's name in the group; unique for ever.
      deployment: The deployment's name.
      record: The application's version that this replica runs.
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
        assert settings.broker_url is not None
        self.name = name
        self.deployment = deployment
        self.stream = record.stream(keys, deployment)
        self.plane = plane
        self.loop = plane.loop
        self._servable = servable
        self._stepper = stepper
        self._keys = keys
        self.max_ongoing = record.deployments[deployment].max_ongoing
        self._grace_s = record.deployments[deployment].grace_s
        self._exit_code = 0
        self._stopping = asyncio.Event()
        self._running = 0
        self._in_thread = 0
        self._paces: dict[str, Pace] = {}
        self._pace = Pace()
        self._suspects: deque[Work] = deque()
        self._alone = self._cautious = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="user-code")
        self._tasks: set[asyncio.Task[None]] = set()
        self._works: dict[int, Work] = {}
        self._backlog = Backlog()
        self.ending = Ending(
            name, record.deployments[deployment], self.stream, plane, keys,
            on_end=self._leave, on_settled=self._backlog.settle,
        )  # fmt: skip
        self._reader = StreamReader(
            name,
            self.stream,
            settings.broker_url,
            plane,
            self._backlog,
            room=self._room,
            accept=self._accept,
            refuse=self.ending.bury_unread,
            on_refused=lambda: self._advertiser.renew(),
            on_out_of_files=lambda: self.stop(Exit.OUT_OF_FILES),
        )
        self._advertiser = ModelAdvertiser(name, self.stream, keys, plane, self._reader.read_also)

    # -- from the first call to the last -----------------------------------------------------------

    async def run(self, on_ready: Callable[[], object]) -> int:
        """Run calls until ``stop``, then finish those that have begun.

        Parameters:
          on_ready: Called once calls are taken.

        Returns:
          The process's exit code.
        """
        await self._reader.open()
        on_ready()
        await self._stopping.wait()
        self._advertiser.stop()
        await self._reader.close()
        if failpoints.ARMED:
            failpoints.hit("drain.mid")
        await self._drain()
        self._reader.disconnect()
        return self._exit_code

    def stop(self, exit_code: int = 0) -> None:
        """Take no more calls, and end when those that have begun are finished; on the loop's thread."""
        self._exit_code = self._exit_code or exit_code
        self._stopping.set()

    async def _drain(self) -> None:
        try:
            await asyncio.wait_for(self._idle.wait(), self._grace_s)
        except TimeoutError:
            log.warning("%d calls still run after %.1f s; they are handed over", self._running, self._grace_s)
        await self.plane.settled(2.0)

    def works(self) -> list[Work]:
        """Return what has begun and not ended; from any thread."""
        return list(self._works.values())

    def streams(self) -> list[str]:
        """Return the streams that this replica reads; from any thread."""
        return list(self._reader.streams)

    def end_command(self, work: Work, conclusion: Conclusion) -> Command:
        """Return what ends a call at the broker, for a thread that has a connection of its own."""
        return work.commit_command(self._keys, conclusion, self.plane.epoch.current(), self.plane.seal)

    def give_back(self, client: Client) -> int:
        """Put the calls that could not begin in time back on the queue, and return how many; from any thread.

        Raises:
          BrokerError: They stay here.
        """
        count, begun = self._backlog.give_back(client, self._keys, self.stream)
        if begun:
            self.loop.call_soon_threadsafe(self._forget, begun)
        return count

    def _forget(self, works: list[Work]) -> None:
        for work in works:
            self._backlog.settle(work.delivery.tag)
            self._leave(work)

    def _room(self) -> int:
        """How many calls may be read now."""
        if self._suspects or self._alone or self._in_thread:
            return 0
        # a queue that holds one call whose replica died often holds more, and each of them has to run alone
        return min(self.max_ongoing - self._running, 1 if self._cautious else self._pace.batch)

    # -- taking ------------------------------------------------------------------------------------

    def _accept(self, delivery: Delivery) -> None:
        """Take a delivery: run it, or end its request when it cannot or must not run any more."""
        try:
            work = Work.of(delivery, self.plane.seal)
        except Exception as error:
            self.ending.bury_unread(delivery, error)
            return
        self._cautious = b"x" in delivery.fields
        if self._alone or (self._cautious and self._suspects):
            self.ending.give_back(delivery)
            return
        self._running += 1
        self._idle.clear()
        if work.header.expired():
            self.ending.commit(work, Conclusion(State.EXPIRED))
        elif self._cautious:
            # its replica died: it runs alone, so that it cannot take its neighbours with it again
            self._suspects.append(work)
            self._run_suspect()
        else:
            self._begin(work)

    def _run_suspect(self) -> None:
        if self._suspects and not self._alone and self._running == len(self._suspects):
            self._alone = True
            work = self._suspects.popleft()
            work.began = time.monotonic()
            self._begin(work)

    def _begin(self, work: Work) -> None:
        self._works[id(work)] = work
        token = request_context.set(work.context())
        try:
            if not self._open(work):
                return
            assert work.call is not None
            method = self._servable.method(work.call.method)
            args = work.call.args
            if not method.takes_request and len(args) == 1 and not work.call.kwargs and isinstance(args[0], Request):
                args = ()
            if method.is_async:
                work.task = self._spawn(self._run_async(work, method, args))
            else:
                self._run_sync(work, method, args)
        except Exception as error:
            self.ending.fail(work, error)
        finally:
            request_context.reset(token)

    def _open(self, work: Work) -> bool:
        """Decode a call; one that cannot be read is a dead letter. Answers whether it may run."""
        try:
            work.call = self._stepper.open(work.header, work.step, work.values(self.plane.seal))
        except BaseException as error:  # arguments that are unpickled run code of their own
            self.ending.bury(work, "unreadable", error)
            return False
        return True

    # -- running -----------------------------------------------------------------------------------

    def _spawn(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run_async(self, work: Work, method: Method, args: Any) -> None:
        assert work.call is not None
        self._pace = _COROUTINES
        try:
            value = await method.call(*args, **work.call.kwargs)
        except BaseException as error:
            self.ending.fail(work, error)
        else:
            self._settle(work, value)

    def _run_sync(self, work: Work, method: Method, args: Any) -> None:
        assert work.call is not None
        pace = self._paces.get(method.name)
        if pace is None:
            pace = self._paces[method.name] = Pace()
        self._pace = pace
        if pace.is_fast or method.makes_generator:
            try:
                value = pace.measure(method.call, args, work.call.kwargs)
            except BaseException as error:
                self.ending.fail(work, error)
            else:
                self._settle(work, value)
            return
        call = partial(contextvars.copy_context().run, pace.measure, method.call, args, work.call.kwargs)
        if self._in_thread:
            del self._works[id(work)]
            self._backlog.queue(work, lambda: self._run_in_thread(work, call))
        else:
            self._run_in_thread(work, call)

    def _run_in_thread(self, work: Work, call: Callable[[], Any]) -> None:
        self._in_thread += 1
        self._works[id(work)] = work
        work.began = time.monotonic()
        future = self._thread.submit(call)
        future.add_done_callback(lambda done: self.loop.call_soon_threadsafe(self._on_thread_done, work, done))

    def _on_thread_done(self, work: Work, done: Any) -> None:
        self._in_thread -= 1
        self._backlog.run_next()
        error = done.exception()
        if error is not None:
            self.ending.fail(work, error)
        else:
            self._settle(work, done.result())
        self.plane.flush()

    def _settle(self, work: Work, value: Any) -> None:
        """End a call with what user code returned; awaitables and streams first have to be run."""
        header = work.header
        if isinstance(value, RESPONSES) or inspect.isawaitable(value):
            work.task = self._spawn(self._end_later(work, value))
        elif is_generator(value) or must_run(header, value):
            task = self._spawn(self._stream(work, value))
            work.task = task if inspect.isasyncgen(value) else None  # a thread goes on whoever waits for it is told
        elif header.stream and not answers_http(header):
            assert work.call is not None
            self.ending.fail(work, plain_result_of_stream(work.call.method))
        else:
            self._end(work, value)

    async def _end_later(self, work: Work, value: Any) -> None:
        try:
            while isinstance(value, RESPONSES) or inspect.isawaitable(value):
                value = await value
        except BaseException as error:
            self.ending.fail(work, error)
        else:
            self._settle(work, value)

    async def _stream(self, work: Work, value: Any) -> None:
        assert work.call is not None
        try:
            emitter = taker_of(self.plane, self._keys, work.header, work.call.method)
            await stream(emitter, value, work.header, self._stepper.encode_item, self._in_user_thread)
        except ReaderGone:
            self.ending.commit(work, Conclusion(State.CANCELLED))
        except BaseException as error:
            self.ending.fail(work, error)
        else:
            self.ending.commit(work, Conclusion(State.DONE, emitter.result()))

    async def _in_user_thread(self, call: Callable[[], Any]) -> Any:
        context = contextvars.copy_context()
        return await self.loop.run_in_executor(self._thread, context.run, call)

    def _end(self, work: Work, value: Any) -> None:
        assert work.call is not None
        try:
            conclusion = self._stepper.conclude(work.header, work.call, value)
        except BaseException as error:  # the value's own code runs here as well, and may raise SystemExit
            self.ending.fail(work, error)
        else:
            self.ending.commit(work, conclusion)

    # -- ending ------------------------------------------------------------------------------------

    def _leave(self, work: Work) -> None:
        self._running -= 1
        self._works.pop(id(work), None)
        self._alone = False
        if not self._running:
            self._idle.set()
        self._run_suspect()
        self._reader.ask()


_COROUTINES = CoroutinePace()
