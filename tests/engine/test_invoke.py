"""How an ``Invoker`` calls user code, seen from where the ends of calls go."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextvars import Context
from typing import Any

import pytest
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from qserve.base import afterwards
from qserve.base.carried import Carried
from qserve.base.context import get_request_context
from qserve.base.keys import Keys
from qserve.engine.invoke import Invocation, Invoker
from qserve.engine.servable import COROUTINE_BATCH, FAST_S, LONGEST_BATCH, Servable
from qserve.engine.step import Conclusion, Stepper
from qserve.engine.streaming import SessionSink, Sink
from qserve.http.render import parse_head
from qserve.wire.application import ApplicationRecord
from qserve.wire.codec import Codec
from qserve.wire.envelope import Answer, Header
from qserve.wire.outcome import State

CODEC = Codec()


class Machine:
    """User code that says where and for whom it ran."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun: list[str] = []
        self.after = asyncio.Event()
        self.committed: dict[Invocation, Any] = {}

    def thread(self) -> int:
        return threading.get_ident()

    def slow(self, name: str) -> int:
        self.begun.append(name)
        self.gate.wait(10)
        return threading.get_ident()

    async def coroutine(self) -> str:
        await asyncio.sleep(0)
        return get_request_context().request_id

    async def stops(self, then: str) -> str:
        self.begun.append(then)
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            self.begun.append("told")
            await asyncio.sleep(0)  # is told once
            if then == "raises":
                raise
            if then == "fails":
                raise ValueError(then) from None
        return then

    def promise(self) -> Awaitable[str]:
        return self.coroutine()

    async def respond(self, kind: str) -> Response:
        async def later() -> None:
            request = get_request_context()
            self.begun.append(f"{kind} {request.request_id} {request.deadline_ms} {len(self.committed)}")
            await self.after.wait()
            self.begun.append("done")

        made: Response = PlainTextResponse("sent") if kind == "whole" else StreamingResponse(iter(["sent"]))
        made.background = BackgroundTask(later)
        return made

    def items(self, count: int) -> Iterator[str]:
        yield from map(str, range(count))

    async def items_async(self, count: int) -> AsyncIterator[str]:
        for number in range(count):
            yield str(number)

    async def streams(self, count: int) -> Response:
        return StreamingResponse(map(str, range(count)), media_type="text/plain")

    def raises(self, kind: str) -> None:
        raise {"SystemExit": SystemExit, "StopIteration": StopIteration, "ValueError": ValueError}[kind](kind)


class Ends:
    """Keeps how calls end."""

    def __init__(self) -> None:
        self.arguments: dict[Invocation, Sequence[bytes]] = {}
        self.committed: dict[Invocation, Any] = {}
        self.failed: dict[Invocation, BaseException] = {}
        self.rejected: dict[Invocation, BaseException] = {}
        self.sent: list[bytes] = []
        self.changed = asyncio.Event()

    def values(self, invocation: Invocation) -> Sequence[bytes]:
        return self.arguments.pop(invocation)

    def sink(self, invocation: Invocation) -> Sink | None:
        return Parts(self.sent) if invocation.header.answer is Answer.PLAIN else None

    def wire(self, invocation: Invocation) -> SessionSink:
        raise NotImplementedError

    def flush(self) -> None:
        pass

    def commit(self, invocation: Invocation, conclusion: Conclusion) -> None:
        value = CODEC.decode(conclusion.payload) if conclusion.state == State.DONE else conclusion.state
        self.committed[invocation] = value
        self.changed.set()

    def fail(self, invocation: Invocation, error: BaseException) -> None:
        self.failed[invocation] = error
        self.changed.set()

    def reject(self, invocation: Invocation, error: BaseException) -> None:
        self.rejected[invocation] = error
        self.changed.set()

    async def until(self, is_true: Callable[[], bool]) -> None:
        while not is_true():
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 10)


class Parts:
    """Takes the items of a streamed response."""

    def __init__(self, sent: list[bytes]) -> None:
        self.sent = sent

    room = 0

    def flush(self) -> None:
        pass

    async def settled(self) -> None:
        pass

    async def send(self, payload: bytes) -> None:
        self.sent.append(payload)

    def result(self) -> bytes:
        return CODEC.encode("streamed")


class Bench:
    """An invoker of one ``Machine``; only on a running loop."""

    def __init__(self) -> None:
        self.ends = Ends()
        self.machine = Machine()
        self.servable = Servable(Machine, (), {})
        self.servable.instance = self.machine
        stepper = Stepper(ApplicationRecord("app", "v", "Machine"), Keys(), CODEC)
        self.invoker: Invoker[Invocation] = Invoker(
            self.servable, stepper, self.ends, asyncio.get_running_loop(), Context(), "machine-sync"
        )

    def begin(
        self,
        method: str,
        *args: Any,
        request_id: str = "r",
        values: Sequence[bytes] | None = None,
        answer: Answer = Answer.VALUE,
        carried: Carried | None = None,
    ) -> Invocation:
        header = Header(request_id, "app", None, 2**42, answer, trace_id=request_id, carried=carried)
        invocation = Invocation(header, method)
        self.ends.arguments[invocation] = [CODEC.encode((args, {}))] if values is None else values
        self.invoker.begin(invocation)
        return invocation

    async def run(self, method: str, *args: Any, request_id: str = "r") -> Any:
        """Run a call and return its value, or the error that it failed with."""
        invocation = self.begin(method, *args, request_id=request_id)
        await self.ends.until(lambda: invocation in self.ends.committed or invocation in self.ends.failed)
        return self.ends.committed.get(invocation, self.ends.failed.get(invocation))


def on_loop(test: Callable[[Bench], Awaitable[None]]) -> None:
    async def run() -> None:
        bench = Bench()
        try:
            await test(bench)
            assert bench.invoker.running() == []
        finally:
            bench.machine.gate.set()
            bench.invoker.close()

    asyncio.run(run())


def test_a_sync_method_runs_in_the_thread_until_it_is_known_to_be_fast() -> None:
    async def test(bench: Bench) -> None:
        first, second = await bench.run("thread"), await bench.run("thread")
        assert first != threading.get_ident() == second

    on_loop(test)


def test_slow_methods_run_one_after_another_and_the_loop_goes_on() -> None:
    async def test(bench: Bench) -> None:
        first, second = bench.begin("slow", "first"), bench.begin("slow", "second")
        assert await bench.run("coroutine", request_id="meanwhile") == "meanwhile"
        assert bench.invoker.is_thread_busy
        assert bench.invoker.running() == [first]

        bench.machine.gate.set()
        await bench.ends.until(lambda: {first, second} <= bench.ends.committed.keys())
        assert bench.machine.begun == ["first", "second"]
        assert first.began < second.began
        assert not bench.invoker.is_thread_busy

    on_loop(test)


def test_a_call_that_is_cancelled_while_it_waits_for_the_thread_leaves_its_place_to_the_next() -> None:
    async def test(bench: Bench) -> None:
        calls = [bench.begin("slow", name, request_id=name) for name in ("first", "second", "third")]
        assert bench.invoker.end("second", State.CANCELLED)
        bench.machine.gate.set()
        await bench.ends.until(lambda: len(bench.ends.committed) == len(calls))

        assert bench.machine.begun == ["first", "third"]
        assert bench.ends.committed[calls[1]] == State.CANCELLED

    on_loop(test)


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("method", ["items", "items_async", "streams"])
def test_the_head_of_a_stream_has_the_times_of_its_steps_if_its_request_asks_for_them(method: str, count: int) -> None:
    async def test(bench: Bench) -> None:
        for carried in (None, Carried(is_timed=True)):
            call = bench.begin(method, count, answer=Answer.PLAIN, carried=carried)
            await bench.ends.until(lambda call=call: call in bench.ends.committed)  # type: ignore[misc]

        heads = [parse_head(bench.ends.sent[number * (1 + count)]) for number in (0, 1)]
        assert [status for status, _ in heads] == [200, 200]
        plain, timed = [dict(headers) for _, headers in heads]
        assert timed.pop("server-timing").startswith(f".{method};dur=")
        assert plain == timed

    on_loop(test)


@pytest.mark.parametrize("then", ["raises", "returns", "fails"])
@pytest.mark.parametrize("has_begun", [False, True])
def test_a_call_that_was_told_of_its_cancellation_ends_as_cancelled_whatever_its_code_does(
    then: str, has_begun: bool
) -> None:
    async def test(bench: Bench) -> None:
        call = bench.begin("stops", then)
        while has_begun and not bench.machine.begun:
            await asyncio.sleep(0)

        assert bench.invoker.end("r", State.EXPIRED)
        assert bench.invoker.end("r", State.CANCELLED)
        await bench.ends.until(lambda: call in bench.ends.committed)

        assert bench.machine.begun == [then, "told"]
        assert bench.ends.committed[call] == State.EXPIRED
        assert not bench.ends.failed
        assert not bench.invoker.end("r", State.CANCELLED)

    on_loop(test)


@pytest.mark.parametrize("times", [1, 3])
def test_a_coroutine_that_a_sync_method_returns_knows_its_request(times: int) -> None:
    """Where it ran first, in the thread, and later on the loop."""

    async def test(bench: Bench) -> None:
        for number in range(times):
            assert await bench.run("promise", request_id=f"r{number}") == f"r{number}"
            assert get_request_context().request_id == ""

    on_loop(test)


@pytest.mark.parametrize("kind", ["SystemExit", "StopIteration", "ValueError"])
def test_what_user_code_raises_ends_its_call_and_nothing_else(kind: str) -> None:
    async def test(bench: Bench) -> None:
        for _ in range(2):  # in the thread, then on the loop
            error = await bench.run("raises", kind)
            assert type(error).__name__ == kind
        assert isinstance(await bench.run("thread"), int)

    on_loop(test)


def test_a_method_that_does_not_exist_fails_and_arguments_that_cannot_be_read_are_rejected() -> None:
    async def test(bench: Bench) -> None:
        assert "Available methods" in str(await bench.run("nothing"))
        unreadable = bench.begin("thread", values=[b"\xc1"])
        assert unreadable in bench.ends.rejected

    on_loop(test)


def test_reading_ahead_follows_the_pace_of_the_method_that_was_called_last() -> None:
    async def test(bench: Bench) -> None:
        assert bench.invoker.batch == 1
        while bench.invoker.batch == 1:  # on a busy machine any call may turn out slow
            await bench.run("thread")
        assert bench.invoker.batch <= LONGEST_BATCH
        await bench.run("coroutine")
        assert bench.invoker.batch == COROUTINE_BATCH
        bench.begin("slow", "one")
        await asyncio.sleep(2 * FAST_S)
        bench.machine.gate.set()
        await bench.ends.until(lambda: not bench.invoker.is_thread_busy)
        assert bench.invoker.batch == 1

    on_loop(test)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("method", ["thread", "coroutine", "promise", "raises"])
def test_a_call_is_freed_by_reference_count(method: str) -> None:
    async def test(bench: Bench) -> None:
        async def run_and_collect(calls: int) -> int:
            for _ in range(calls):
                await bench.run(method, *["ValueError"][: method == "raises"])
            bench.ends.failed.clear()
            await asyncio.sleep(0)
            return gc.collect()

        await run_and_collect(3)  # lasting things, such as the pace of a method, are made
        # what calls leave they leave each time; a thread of this process that ends meanwhile does so once
        assert min([await run_and_collect(20) for _ in range(3)]) == 0

    on_loop(test)


def test_the_function_that_a_name_has_now_is_called() -> None:
    async def test(bench: Bench) -> None:
        for _ in range(2):  # it is fast by then
            await bench.run("thread")
        bench.machine.thread = lambda: 7  # type: ignore[method-assign]
        assert await bench.run("thread") == 7
        del bench.machine.thread
        assert await bench.run("thread") != 7

    on_loop(test)


def test_time_in_the_queue_does_not_count_as_time_of_the_call() -> None:
    async def test(bench: Bench) -> None:
        first, second = bench.begin("slow", "first"), bench.begin("slow", "second")
        queued_at = second.began
        await asyncio.sleep(0.01)
        bench.machine.gate.set()
        await bench.ends.until(lambda: {first, second} <= bench.ends.committed.keys())
        assert queued_at + 0.01 <= second.began <= time.monotonic()

    on_loop(test)


@pytest.mark.parametrize(
    ("kind", "answer"), [("whole", Answer.PLAIN), ("whole", Answer.JSON), ("stream", Answer.PLAIN)]
)
def test_a_background_task_runs_after_its_response_was_committed_and_is_waited_for(kind: str, answer: Answer) -> None:
    async def run(bench: Bench) -> None:
        bench.machine.committed = bench.ends.committed
        invocation = bench.begin("respond", kind, request_id="mine", answer=answer)
        await bench.ends.until(lambda: invocation in bench.ends.committed)
        assert bench.invoker.running() == []

        finished = asyncio.create_task(afterwards.finished())
        while not bench.machine.begun:
            await asyncio.sleep(0)
        assert not finished.done()
        bench.machine.after.set()
        await finished
        assert bench.machine.begun == [f"{kind} mine 0 1", "done"]

    on_loop(run)
