"""What running code reports of its progress, and who can ask for it: here and on real replicas."""

from __future__ import annotations

import asyncio
import contextvars
import multiprocessing
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import wait_until
from rendezvous import arrive, await_arrival
from serving import ServeRun

import qserve as serve
from qserve.calls import progress as reports
from qserve.calls.progress import report_progress
from qserve.wire.progress import MESSAGE_LIMIT, Progress

HALF = Progress(0.5, "half of it")


@serve.deployment(max_ongoing_requests=20)
class Worker:
    """Code that reports in every way, and goes on when the test has seen it."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def seen(self) -> None:
        await_arrival(self.folder, "seen")

    def sync(self) -> str:
        serve.report_progress(0.5, "half of it")
        self.seen()
        return "done"

    async def asynchronous(self) -> str:
        await asyncio.sleep(0)
        serve.report_progress(0.5, "half of it")
        await asyncio.to_thread(self.seen)
        return "done"

    def thread(self) -> str:
        here = contextvars.copy_context()
        thread = threading.Thread(target=here.run, args=(report_progress, 0.5, "half of it"))
        thread.start()
        thread.join()
        self.seen()
        return "done"

    def child(self) -> str:
        process = multiprocessing.get_context("fork").Process(target=_report_in_child, args=(self.folder,))
        process.start()
        process.join()
        return "done"

    async def items(self) -> AsyncIterator[str]:
        serve.report_progress(0.5, "half of it")
        await asyncio.to_thread(self.seen)
        yield "done"

    def items_of_sync_code(self) -> Iterator[str]:
        serve.report_progress(0.5, "half of it")
        self.seen()
        yield "done"

    @serve.batch(max_batch_size=2, batch_wait_timeout_s=60)
    async def pair(self, names: list[str]) -> list[str]:
        serve.report_progress(0.5, "half of it")
        await asyncio.to_thread(self.seen)
        return names

    async def much(self) -> str:
        for number in range(10_000):
            serve.report_progress(number / 10_000, "x" * number)
        serve.report_progress(0.5, "half of it")
        await asyncio.to_thread(self.seen)
        return "done"

    async def asks(self, call_id: str) -> list[Any]:
        ref = serve.get_ref(call_id)
        return [await ref.progress_async(), await asyncio.to_thread(ref.progress, 60)]

    def asks_in_sync_code(self, call_id: str) -> Any:
        return serve.get_ref(call_id).progress(60)


def _report_in_child(folder: str) -> None:
    serve.report_progress(0.5, "half of it")
    await_arrival(folder, "seen")


def is_half(call: Any) -> bool:
    return call.progress(timeout_s=60) == HALF


@pytest.mark.parametrize(
    "method", ["sync", "asynchronous", "thread", "child", "items", "items_of_sync_code", "pair", "much"]
)
def test_code_of_any_kind_reports_how_far_it_is(serve_run: ServeRun, mode: str, method: str, tmp_path: Path) -> None:
    if method == "child" and mode == "local":
        pytest.skip("the state of a request is in this process, which its children cannot reach")
    handle: Any = serve_run(Worker.bind(str(tmp_path))).options(stream=method.startswith("items"))
    calls = [getattr(handle, method).remote(*names) for names in ((["a"], ["b"]) if method == "pair" else ([],))]

    for call in calls:
        wait_until(lambda call=call: is_half(call), description="the report is seen")
    arrive(str(tmp_path), "seen")

    results = [list(call)[-1] if method.startswith("items") else call.result(60) for call in calls]
    assert results == (["a", "b"] if method == "pair" else ["done"])
    assert [call.progress() for call in calls] == [None for _ in calls]


def test_other_programs_and_other_requests_ask_by_the_id(serve_run: ServeRun, tmp_path: Path) -> None:
    handle: Any = serve_run(Worker.bind(str(tmp_path)))
    call = handle.asynchronous.remote()
    wait_until(lambda: is_half(call), description="the report is seen")

    assert serve.get_ref(call.request_id).progress() == HALF
    assert handle.asks.remote(call.request_id).result(60) == [HALF, HALF]
    assert handle.asks_in_sync_code.remote(call.request_id).result(60) == HALF
    assert asyncio.run(_progress_of(call)) == HALF
    arrive(str(tmp_path), "seen")

    assert call.result(60) == "done"
    assert serve.get_ref(call.request_id).progress() is None


async def _progress_of(call: Any) -> Any:
    with pytest.raises(RuntimeError, match="progress_async"):
        call.progress()
    return await call.progress_async()


def test_a_report_outside_of_a_request_does_nothing() -> None:
    serve.report_progress(0.5)
    assert serve.put(1).progress() is None


@pytest.mark.parametrize(
    ("fraction", "message", "error"),
    [
        (40, "", "from 0 to 1; got 40"),
        (-0.1, "", "from 0 to 1; got -0.1"),
        (float("nan"), "", "from 0 to 1; got nan"),
        ("half", "", "from 0 to 1; got 'str'"),
        (True, "", "from 0 to 1; got 'bool'"),
        (0.5, 3, "is a text; got 'int'"),
    ],
)
def test_a_report_that_means_nothing_is_refused(fraction: Any, message: Any, error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        serve.report_progress(fraction, message)


class Noting:
    """A plane that notes what it is to send."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, Progress]] = []

    def note_progress(self, request_id: str, progress: Progress) -> None:
        self.noted.append((request_id, progress))


@pytest.mark.parametrize("has_threads", [True, False])
def test_many_reports_are_few_messages_with_the_last_of_each_request(
    has_threads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane: Any = Noting()
    sender = reports._Reports()
    if not has_threads:
        monkeypatch.setattr(reports.threading.Timer, "start", _no_thread)
    for number in range(1000):
        sender.add(plane, ("a",), Progress(number / 1000))
        sender.add(plane, ("b", "c"), Progress(number / 1000))
    last = dict.fromkeys(("a", "b", "c"), Progress(0.999))
    wait_until(lambda: dict(plane.noted) == last, description="the last reports are sent")

    assert not has_threads or len(plane.noted) < 1000


def _no_thread(timer: threading.Timer) -> None:
    raise RuntimeError("can't start new thread")


def test_a_message_is_cut_and_rounding_is_forgiven(serve_run: ServeRun, tmp_path: Path) -> None:
    @serve.deployment
    class Long:
        def __call__(self) -> None:
            serve.report_progress(1 + 1e-9, "\ud800" + "x" * 2 * MESSAGE_LIMIT)
            await_arrival(str(tmp_path), "seen")

    call: Any = serve_run(Long.bind()).remote()
    wait_until(lambda: call.progress(60) is not None, description="the report is seen")
    found = call.progress(60)
    arrive(str(tmp_path), "seen")

    assert found.fraction == 1.0
    assert found.message[1:] == "x" * (MESSAGE_LIMIT - 1)
