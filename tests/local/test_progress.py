"""What running code reports of its progress, and who can ask for it: here and on real replicas."""

from __future__ import annotations

import asyncio
import contextvars
import multiprocessing
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from processes import wait_until
from rendezvous import arrive, await_arrival
from serving import ServeRun

import qserve as serve
from qserve.base.context import Run
from qserve.base.keyring import Keyring
from qserve.calls import progress as reports
from qserve.calls.progress import progress
from qserve.calls.ref import current
from qserve.wire.events import Event
from qserve.wire.progress import MESSAGE_LIMIT, Progress
from qserve.wire.request_ids import new_value_id
from qserve.wire.sealing import Seal, event_context

HALF = Progress(0.5, "half of it")


@serve.deployment(max_ongoing_requests=20)
class Worker:
    """Code that reports in every way, and goes on when the test has seen it."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def seen(self) -> None:
        await_arrival(self.folder, "seen")

    def sync(self) -> str:
        serve.progress(0.5, "half of it")
        self.seen()
        return "done"

    async def asynchronous(self) -> str:
        await asyncio.sleep(0)
        serve.progress(0.5, "half of it")
        await asyncio.to_thread(self.seen)
        return "done"

    def thread(self) -> str:
        here = contextvars.copy_context()
        thread = threading.Thread(target=here.run, args=(progress, 0.5, "half of it"))
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
        serve.progress(0.5, "half of it")
        await asyncio.to_thread(self.seen)
        yield "done"

    def items_of_sync_code(self) -> Iterator[str]:
        serve.progress(0.5, "half of it")
        self.seen()
        yield "done"

    @serve.batch(max_batch_size=2, batch_wait_timeout_s=60)
    async def pair(self, names: list[str]) -> list[str]:
        serve.progress(0.5, "half of it")
        await asyncio.to_thread(self.seen)
        return names

    @serve.batch(max_batch_size=2, batch_wait_timeout_s=60)
    async def each(self, names: list[str]) -> list[str]:
        for number, request in enumerate(serve.get_request_context().batch):
            serve.progress(None, f"item {number}", context=request)
        await asyncio.to_thread(self.seen)
        return names

    def fails_once(self) -> str:
        serve.progress(0.5, "half of it")
        if not os.path.exists(f"{self.folder}/tried"):  # noqa: PTH110
            Path(self.folder, "tried").touch()
            raise ValueError("not at once")
        return "done"

    async def much(self) -> str:
        for number in range(10_000):
            serve.progress(number / 10_000, "x" * number)
        serve.progress(0.5, "half of it")
        await asyncio.to_thread(self.seen)
        return "done"

    async def asks(self, call_id: str) -> list[Any]:
        ref = serve.get_ref(call_id)
        return [await ref.progress_async(), await asyncio.to_thread(ref.progress, 60)]

    def asks_in_sync_code(self, call_id: str) -> Any:
        return serve.get_ref(call_id).progress(60)


def _report_in_child(folder: str) -> None:
    serve.progress(0.5, "half of it")
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


def told(events: Any) -> list[tuple[Any, ...]]:
    return [(one.name, one.deployment, one.attempt, one.fraction, one.message, one.status) for one in events]


ACCEPTED, END = ("accepted", "", 0, None, "", ""), ("end", "", 0, None, "", "done")


async def _events_of(ref: Any, last_id: str = "") -> list[Event]:
    return [event async for event in ref.events(last_id)]


def test_the_events_of_a_request_come_in_their_order_and_go_on_behind_any_of_them(
    serve_run: ServeRun, tmp_path: Path
) -> None:
    handle: Any = serve_run(Worker.bind(str(tmp_path)))
    call = handle.asynchronous.remote()
    wait_until(lambda: is_half(call), description="the report is seen")
    live = iter(call.events())
    begin = list(islice(live, 3))
    arrive(str(tmp_path), "seen")
    found = [*begin, *live]

    assert told(found) == [
        ACCEPTED,
        ("started", "Worker", 1, None, "", ""),
        ("progress", "Worker", 1, 0.5, "half of it", ""),
        ("done", "Worker", 1, None, "", ""),
        END,
    ]
    for number, event in enumerate(found):
        assert list(call.events(event.id)) == asyncio.run(_events_of(call, event.id)) == found[number + 1 :]
    assert list(serve.get_ref(call.request_id).events("not an id")) == found
    with pytest.raises(serve.exceptions.ResultUnavailable):
        list(serve.get_ref(new_value_id()).events())
    assert told(serve.put(1).events()) == [ACCEPTED, END]


def test_code_that_reports_nothing_is_followed_from_the_first_reader_on(serve_run: ServeRun, tmp_path: Path) -> None:
    @serve.deployment
    class Quiet:
        def __call__(self) -> str:
            arrive(str(tmp_path), "running")
            await_arrival(str(tmp_path), "seen")
            return "done"

    call: Any = serve_run(Quiet.bind()).remote()
    await_arrival(str(tmp_path), "running")
    live = iter(call.events())
    begin = [next(live), next(live)]
    arrive(str(tmp_path), "seen")

    assert told([*begin, *live]) == [
        ACCEPTED,
        ("started", "Quiet", 1, None, "", ""),
        ("done", "Quiet", 1, None, "", ""),
        END,
    ]


def test_events_that_were_not_signed_for_the_request_are_not_believed(
    serve_run: ServeRun, mode: str, tmp_path: Path
) -> None:
    if mode == "local":
        pytest.skip("nothing is signed within one process")
    handle: Any = serve_run(Worker.bind(str(tmp_path)))
    calls = [handle.asynchronous.remote() for _ in range(2)]
    for call in calls:
        wait_until(lambda call=call: is_half(call), description="the report is seen")
    plane: Any = current.installed
    logs = [plane.keys.request(call.request_id).replace(":r:", ":v:") for call in calls]
    moved, copied = (plane.client.xrange(log)[-1][1][b"e"] for log in logs)
    others = Seal(Keyring(b"another key")).seal(event_context(calls[1].request_id), Event("progress", 1.0).encode())
    for number, forged in enumerate((moved, copied, others, Event("done", 1.0).encode(), b"")):
        plane.client.xadd(logs[1], {"e": forged}, id=f"{100 + number}-0")

    live = iter(calls[1].events())
    begin = list(islice(live, 3))
    arrive(str(tmp_path), "seen")

    assert [event.name for event in (*begin, *live)] == ["accepted", "started", "progress", "end"]


@pytest.mark.slow
def test_a_try_that_failed_is_told_and_so_is_the_next(run_on_broker: ServeRun, tmp_path: Path) -> None:
    handle: Any = run_on_broker(Worker.options(max_retries=1, retry_backoff_s=0.01).bind(str(tmp_path)))
    call = handle.fails_once.remote()
    assert call.result(60) == "done"

    assert [(event.name, event.attempt) for event in call.events()] == [
        ("accepted", 0),
        *(("started", 1), ("progress", 1), ("retried", 1)),
        *(("started", 2), ("progress", 2), ("done", 2)),
        ("end", 0),
    ]


def test_an_item_of_a_batch_reports_for_its_own_request(serve_run: ServeRun, tmp_path: Path) -> None:
    handle: Any = serve_run(Worker.bind(str(tmp_path)))
    calls = [handle.each.remote(name) for name in ("a", "b")]
    for number, call in enumerate(calls):
        wait_until(lambda call=call: call.progress(60), description="the report is seen")
        assert call.progress(60) == Progress(None, f"item {number}")
    arrive(str(tmp_path), "seen")

    assert [call.result(60) for call in calls] == ["a", "b"]


def test_a_report_outside_of_a_request_does_nothing() -> None:
    serve.progress(0.5)
    assert serve.put(1).progress() is None


@pytest.mark.parametrize(
    ("fraction", "message", "error"),
    [
        (40, "", "from 0 to 1, or None; got 40"),
        (-0.1, "", "or None; got -0.1"),
        (float("nan"), "", "or None; got nan"),
        ("half", "", "or None; got 'str'"),
        (True, "", "or None; got 'bool'"),
        (0.5, 3, "is a text; got 'int'"),
    ],
)
def test_a_report_that_means_nothing_is_refused(fraction: Any, message: Any, error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        serve.progress(fraction, message)


class Noting:
    """A plane that notes what it is to send, and answers at once, or not at all while the broker is away."""

    def __init__(self, is_away: bool = False) -> None:
        self.noted: list[tuple[Run, Event]] = []
        self.is_away, self.is_wanted = is_away, True

    def note(self, run: Run, event: Event, on_reply: Callable[[bool], object] = bool) -> None:
        self.noted.append((run, event))
        if not self.is_away:
            on_reply(self.is_wanted)

    def said(self, run: Run) -> list[float | None]:
        return [event.fraction for one, event in self.noted if one == run and event.name == "progress"]


RUNS = [Run(name * 32, "0", "{qserve}:q:app:v:Model", b"1-1", 1) for name in "abc"]


@pytest.mark.parametrize("fault", ["", "threads", "broker"])
def test_many_reports_are_few_messages_with_the_last_of_each_request(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane: Any = Noting(is_away=fault == "broker")
    sender = reports.Reports()
    if fault == "threads":
        monkeypatch.setattr(reports.threading.Timer, "start", _no_thread)
    for number in range(1000):
        sender.add(plane, RUNS[:1], Progress(number / 1000))
        sender.add(plane, RUNS[1:], Progress(number / 1000))
    assert [sender.end(run) for run in (*RUNS, RUNS[0])] == [True, True, True, False]
    sender.add(plane, RUNS, Progress(1.0))  # what goes on after its end is not heard

    assert [(plane.said(run)[0], plane.said(run)[-1]) for run in RUNS] == [(0.0, 0.999)] * 3
    assert [event.name for run, event in plane.noted if run == RUNS[0]][:2] == ["started", "progress"]
    assert fault == "threads" or len(plane.noted) < 1000
    assert fault != "broker" or len(plane.noted) == 9, "what waits for the broker is one message and the last one"
    assert not sender.open


def test_what_was_said_last_is_sent_while_the_call_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    plane: Any = Noting()
    sender = reports.Reports()
    for number in range(1000):
        sender.add(plane, RUNS, Progress(number / 1000))

    for run in RUNS:
        wait_until(lambda run=run: plane.said(run)[-1] == 0.999, description="the last report is sent")


def test_a_call_that_others_have_taken_over_says_no_more() -> None:
    plane: Any = Noting()
    plane.is_wanted = False
    sender = reports.Reports()
    for number in range(1000):
        sender.add(plane, RUNS, Progress(number / 1000))

    assert [plane.said(run) for run in RUNS] == [[0.0]] * 3
    assert not sender.open


def _no_thread(timer: threading.Timer) -> None:
    raise RuntimeError("can't start new thread")


def test_a_message_is_cut_and_rounding_is_forgiven(serve_run: ServeRun, tmp_path: Path) -> None:
    @serve.deployment
    class Long:
        def __call__(self) -> None:
            serve.progress(1 + 1e-9, "\ud800" + "x" * 2 * MESSAGE_LIMIT)
            await_arrival(str(tmp_path), "seen")

    call: Any = serve_run(Long.bind()).remote()
    wait_until(lambda: call.progress(60) is not None, description="the report is seen")
    found = call.progress(60)
    arrive(str(tmp_path), "seen")

    assert found.fraction == 1.0
    assert found.message[1:] == "x" * (MESSAGE_LIMIT - 1)
