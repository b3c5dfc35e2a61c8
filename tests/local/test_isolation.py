"""What calls see of one another: nothing of the context that another one set, wherever user code is entered."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import marks
import pytest
from processes import wait_until
from serving import ServeRun, ask

import qserve as serve
from qserve.define.multiplexing import unload_models


class Value:
    """Runs user code where it is packed and unpacked."""

    def __reduce__(self) -> tuple[Any, ...]:
        marks.note("packing")
        return Value.unpacked, ()

    @staticmethod
    def unpacked() -> Value:
        marks.note("unpacking")
        return Value()


class Model:
    async def __del__(self) -> None:  # type: ignore[override]
        marks.note("the end of a model")


def size_of(items: list[Any]) -> int:
    marks.note("batch_size_fn")
    return len(items)


@serve.deployment(user_config={}, max_concurrent_queries=100, health_check_period_s=0.1)
class Entries:
    def __init__(self) -> None:
        marks.note("constructor")

    def reconfigure(self, user_config: Any) -> None:
        marks.note("reconfigure")

    async def check_health(self) -> None:
        marks.note("check_health")

    def fast(self) -> None:
        marks.note("fast def")

    def in_thread(self) -> None:
        marks.note("def in the thread")
        time.sleep(0.01)

    async def coroutine(self) -> None:
        marks.note("async def")
        await asyncio.sleep(0)
        assert marks.mark.get() == "async def"

    def coroutine_of_def(self) -> Awaitable[None]:
        marks.note("def that returns a coroutine")
        return self.finish()

    async def finish(self) -> None:
        assert marks.mark.get() == "def that returns a coroutine"

    def items(self) -> Iterator[str]:
        marks.note("generator")
        yield marks.mark.get()
        marks.mark.set("second item")
        yield marks.mark.get()
        yield marks.mark.get()

    async def items_async(self) -> AsyncIterator[str]:
        marks.note("async generator")
        yield marks.mark.get()
        marks.mark.set("second item")
        await asyncio.sleep(0)
        yield marks.mark.get()
        yield marks.mark.get()

    @serve.batch(max_batch_size=2, batch_wait_timeout_s=0.01, batch_size_fn=size_of)
    async def batched(self, items: list[int]) -> list[int]:
        marks.note("batch")
        return items

    async def batch(self) -> None:
        marks.mark.set("caller of a batch")
        await self.batched(1)
        assert marks.mark.get() == "caller of a batch"

    @serve.batch(max_batch_size=2, batch_wait_timeout_s=0.01)
    async def batched_items(self, items: list[int]) -> AsyncIterator[list[int]]:
        marks.note("batch generator")
        yield items
        assert marks.mark.get() == "batch generator"

    async def batch_items(self) -> None:
        marks.mark.set("caller of a batch")
        assert [item async for item in self.batched_items(1)] == [1]

    @serve.multiplexed(max_num_models_per_replica=1)
    async def load(self, model_id: str) -> Model:
        marks.note("load of a model")
        assert serve.get_multiplexed_model_id() == model_id
        return Model()

    async def model(self) -> None:
        marks.mark.set("caller of a load")
        await self.load(serve.get_multiplexed_model_id())
        assert marks.mark.get() == "caller of a load"

    def value(self, value: Value) -> Value:
        return value

    async def unload(self) -> None:
        await unload_models()

    async def left_behind(self) -> None:
        marks.mark.set("task")
        self.task = asyncio.create_task(asyncio.sleep(0))
        self.task.add_done_callback(lambda task: marks.mark.set("done callback"))

    async def report(self) -> list[tuple[str, str]]:
        return marks.seen

    async def at_import(self) -> str:
        return marks.imported.get()


@pytest.fixture
def entries(serve_run: ServeRun) -> Any:
    marks.seen.clear()
    marks.mark.set("")  # in local mode calls begin with what this program has set
    return serve_run(Entries.bind())


Call = Callable[[Any], object]
STREAM = ["second item"] * 2
CALLS: dict[str, Call] = {
    "fast def": lambda handle: ask(handle.fast),
    "def in the thread": lambda handle: ask(handle.in_thread),
    "async def": lambda handle: ask(handle.coroutine),
    "def that returns a coroutine": lambda handle: ask(handle.coroutine_of_def),
    "generator": lambda handle: list(handle.options(stream=True).items.remote()) == ["generator", *STREAM],
    "async generator": lambda handle: (
        list(handle.options(stream=True).items_async.remote()) == ["async generator", *STREAM]
    ),
    "batch": lambda handle: ask(handle.batch),
    "batch generator": lambda handle: ask(handle.batch_items),
    "load of a model": lambda handle: [ask(handle.options(multiplexed_model_id=name).model) for name in "ab"],
    "packing": lambda handle: ask(handle.value, Value()),
    "task": lambda handle: ask(handle.left_behind),
}


def test_nothing_that_one_entry_into_user_code_sets_is_seen_in_another(entries: Any, mode: str) -> None:
    for _ in range(3):
        for entry, call in CALLS.items():
            assert call(entries) is not False, entry
    ask(entries.unload)
    if mode == "broker":
        wait_until(lambda: "check_health" in dict(ask(entries.report)), description="its health was checked")
    found = ask(entries.report)

    seen = {entry: {mark for name, mark in found if name == entry} for entry, _ in found}
    # by the caller as well, in its own context; a result is packed in that of its call
    assert seen.pop("packing") | seen.pop("unpacking") <= {"", "packing", "unpacking"}
    expected = {*CALLS, "constructor", "reconfigure", "batch_size_fn", "the end of a model"}
    expected |= {"check_health"} if mode == "broker" else set()
    assert expected - {"packing", "task"} <= seen.keys()
    assert {entry: marks for entry, marks in seen.items() if marks != {""}} == {}
    assert ask(entries.at_import) == "at import"


@serve.deployment(max_concurrent_queries=100)
class Gate:
    def __init__(self) -> None:
        self.gate = threading.Event()

    def block(self) -> bool:
        return self.gate.wait(20)

    async def open(self) -> bool:
        self.gate.set()
        return True


def test_a_coroutine_runs_while_sync_methods_of_its_replica_run_and_wait(serve_run: ServeRun) -> None:
    handle = serve_run(Gate.bind())
    blocked = [handle.block.remote() for _ in range(3)]
    wait_until(lambda: all(ref.acceptance.is_set() for ref in blocked), description="they are on the queue")

    assert ask(handle.open)
    assert serve.get(blocked, timeout=30) == [True] * 3, "the gate was opened while they waited for it"


@serve.deployment
class Shared:
    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        self.local = threading.local()
        self.has_gone_on: list[str] = []
        self.go_on = threading.Event()

    def change(self, folder: str) -> None:
        os.chdir(folder)
        os.environ["CHANGED_BY_A_CALL"] = self.local.value = "changed"
        marks.changed = "changed"  # type: ignore[attr-defined]
        threading.Thread(target=self.note_later, daemon=True).start()
        time.sleep(0.01)  # it stays in the thread

    def note_later(self) -> None:
        self.go_on.wait(20)
        self.has_gone_on.append("thread")

    async def leave_task(self) -> None:
        async def later() -> None:
            while not self.go_on.is_set():
                await asyncio.sleep(0.001)
            self.has_gone_on.append(f"task: {marks.mark.get()}")

        marks.mark.set("its call's")
        self.tasks.append(asyncio.create_task(later()))

    def look(self) -> list[Any]:
        self.go_on.set()
        time.sleep(0.01)
        return [str(Path.cwd()), os.environ.get("CHANGED_BY_A_CALL"), self.local.value, marks.changed]  # type: ignore[attr-defined]

    async def gone_on(self) -> list[str]:
        return sorted(self.has_gone_on)


def test_what_belongs_to_the_process_is_shared_and_stays(
    serve_run: ServeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path.cwd())  # in local mode the process is this one
    monkeypatch.setenv("CHANGED_BY_A_CALL", "")
    handle = serve_run(Shared.bind())
    ask(handle.change, str(tmp_path))
    ask(handle.leave_task)

    assert ask(handle.look) == [str(tmp_path), *["changed"] * 3]
    wait_until(
        lambda: ask(handle.gone_on) == ["task: its call's", "thread"], description="both have gone on", timeout_s=30
    )


@serve.deployment
class Handler:
    def __init__(self) -> None:
        self.signals: list[int] = []
        signal.signal(signal.SIGUSR1, lambda number, frame: self.signals.append(number))

    async def handle(self) -> list[int]:
        signal.signal(signal.SIGUSR2, lambda number, frame: self.signals.append(number))
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.raise_signal(number)
        return [int(number) for number in self.signals]


@pytest.mark.slow
def test_a_replica_may_handle_signals_that_are_not_ours(run_on_broker: ServeRun) -> None:
    assert ask(run_on_broker(Handler.bind()).handle) == [signal.SIGUSR1, signal.SIGUSR2]
