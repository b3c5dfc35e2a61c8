"""What user code can raise or return at its worst: its request fails with a word for it, and its replica goes on."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from http_client import Client
from processes import Started, wait_until

import qserve
from qserve.base.keys import GROUP
from qserve.broker.connection import connect
from qserve.exceptions import ResultNotSerialisable, TaskError

MIB = 1024 * 1024
TEXT_LIMIT = 4096


class TwoArguments(Exception):
    def __init__(self, left: int, right: int) -> None:
        super().__init__(f"{left} and {right}")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class Locked(Exception):
    def __init__(self) -> None:
        super().__init__(threading.Lock())
        self.lock = threading.Lock()


def _local() -> BaseException:
    class Local(Exception):
        pass

    return Local("of a function")


def _endless() -> None:
    _endless()


def _recursion() -> BaseException:
    try:
        _endless()
    except RecursionError as error:
        return error
    raise AssertionError


ERRORS: dict[str, tuple[Callable[[], BaseException], str]] = {
    "a class of a function": (_local, "Local: of a function"),
    "a lock inside": (Locked, "Locked"),
    "two arguments": (lambda: TwoArguments(1, 2), "TwoArguments: 1 and 2"),
    "a text that raises": (Unprintable, "not available: RuntimeError"),
    "a message of 5 MB": (lambda: ValueError("x" * 5_000_000), "(truncated)"),
    "a long integer": (lambda: ValueError(2**70), "ValueError: 1180591620717411303424"),
    "SystemExit": (lambda: SystemExit(3), "SystemExit: 3"),
    "KeyboardInterrupt": (KeyboardInterrupt, "KeyboardInterrupt"),
    "CancelledError": (asyncio.CancelledError, "CancelledError"),
    "GeneratorExit": (GeneratorExit, "GeneratorExit"),
    "a group": (lambda: ExceptionGroup("several", [ValueError("one"), KeyError("two")]), "several (2 sub-exceptions)"),
    "RecursionError": (_recursion, "RecursionError"),
}


def _nested() -> list[Any]:
    value: list[Any] = []
    for _ in range(1_000_000):
        value = [value]
    return value


class _Exits:
    def __reduce__(self) -> Any:
        raise SystemExit


RESULTS: dict[str, tuple[Callable[[], Any], type[ResultNotSerialisable]]] = {
    "a lock": (threading.Lock, ResultNotSerialisable),
    "nested a million deep": (_nested, ResultNotSerialisable),
}


@qserve.deployment
class Worst:
    """Raises and returns what it is told to, in each of the ways in which a call may run."""

    def __init__(self) -> None:
        self.raised = 0

    def pid(self) -> int:
        return os.getpid()

    def count_raised(self) -> int:
        return self.raised

    def raise_now(self, what: str) -> None:
        self.raised += 1
        raise ERRORS[what][0]()

    async def raise_later(self, what: str) -> None:
        self.raised += 1
        await asyncio.sleep(0)
        raise ERRORS[what][0]()

    def yield_then_raise(self, what: str) -> Iterator[int]:
        yield 1
        raise ERRORS[what][0]()

    def give(self, what: str) -> Any:
        return RESULTS[what][0]()

    def yield_it(self, what: str) -> Iterator[Any]:
        yield RESULTS[what][0]()

    def give_what_exits(self) -> Any:
        return _Exits()

    async def __call__(self, request: Any) -> Any:
        what = (await request.json())["what"]
        if what == "NaN":
            return {"a": float("nan")}
        if what in ERRORS:
            raise ERRORS[what][0]()
        return RESULTS[what][0]()


@pytest.fixture(scope="module")
def worst(started: Started) -> Iterator[Any]:
    """A single replica; the same one must be there at the end."""
    handle = qserve.run(Worst.bind())
    before = qserve.get(handle.pid.remote(), timeout=20)
    yield handle
    assert qserve.get(handle.pid.remote(), timeout=20) == before
    assert "died" not in started.log.read_text()
    with broker_of(started) as client:
        (queue,) = client.scan_iter("*:q:default:*:Worst")
        wait_until(
            lambda: (client.xlen(queue), client.xpending(queue, GROUP)["pending"]) == (0, 0),
            description="nothing is queued or pending",
        )


def broker_of(started: Started) -> redis.Redis:
    """A connection to the broker that all tests here use."""
    (folder,) = started.site.broker_folders()
    (socket,) = filter(Path.is_socket, (started.site.folder / folder).iterdir())
    return connect(f"unix://{socket}")


def ask(started: Started, what: str) -> tuple[int, dict[str, Any]]:
    answer = Client(started.url).post("/", {"what": what})
    return answer.status, answer.error


@pytest.mark.row("F22")
@pytest.mark.parametrize("what", ERRORS)
@pytest.mark.parametrize("method", ["raise_now", "raise_later"])
def test_an_error_of_any_kind_fails_its_call_by_name(worst: Any, method: str, what: str) -> None:
    raised_before = qserve.get(worst.count_raised.remote(), timeout=20)
    with pytest.raises(TaskError) as caught:
        qserve.get(worst.options(method_name=method).remote(what), timeout=20)

    said = f"{caught.value.remote_type}: {caught.value.remote_message}"
    assert ERRORS[what][1] in said
    assert len(caught.value.remote_message) <= TEXT_LIMIT + 20
    assert len(said) < 4_500
    assert "test_bad_results.py" in caught.value.remote_traceback or len(said) > TEXT_LIMIT
    assert qserve.get(worst.count_raised.remote(), timeout=20) == raised_before + 1


@pytest.mark.parametrize("what", ERRORS)
def test_an_error_of_any_kind_ends_a_stream_after_its_items(worst: Any, what: str) -> None:
    items = worst.options(method_name="yield_then_raise", stream=True).remote(what)

    assert next(items) == 1
    with pytest.raises(TaskError):
        next(items)


@pytest.mark.row("F22")
@pytest.mark.parametrize("what", ERRORS)
def test_an_error_of_any_kind_is_500_with_its_name_and_its_traceback_in_the_log(
    worst: Any, started: Started, what: str
) -> None:
    log_before = len(started.log.read_bytes())
    status, error = ask(started, what)

    assert (status, error["code"], error["deployment"]) == (500, "user_code_failed", "Worst")
    assert ERRORS[what][1] in error["message"]
    assert len(error["message"]) < 4_500
    frames = "raise ERRORS[what][0]()"
    wait_until(lambda: frames in started.log.read_text()[log_before:], description="the traceback is logged")
    assert len(started.log.read_bytes()) - log_before < 100_000


@pytest.mark.row("F23")
@pytest.mark.parametrize("what", RESULTS)
@pytest.mark.parametrize("method", ["give", "yield_it"])
def test_a_result_that_cannot_travel_fails_its_call_by_a_class_of_its_own(worst: Any, method: str, what: str) -> None:
    kind = RESULTS[what][1]
    with pytest.raises(kind):
        if method == "give":
            qserve.get(worst.options(method_name=method).remote(what), timeout=20)
        else:
            next(worst.options(method_name=method, stream=True).remote(what))


@pytest.mark.row("F23")
@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("a lock", "result_not_serialisable"),
        ("NaN", "result_not_serialisable"),
        ("nested a million deep", "result_not_serialisable"),
    ],
)
def test_a_result_that_http_cannot_have_is_500_by_code(worst: Any, started: Started, what: str, code: str) -> None:
    with broker_of(started) as client:

        def memory() -> int:
            return int(client.info("memory")["used_memory"])

        used = memory()
        answer = Client(started.url).post("/", {"what": what})
        error = answer.error
        assert (answer.status, error["code"], error["deployment"]) == (500, code, "Worst")
        assert error["retryable"] is False
        assert len(answer.body) < TEXT_LIMIT
        wait_until(lambda: memory() < used + 4 * MIB, description="the broker holds none of it")


def test_a_result_whose_own_code_exits_ends_its_call_and_not_its_replica(worst: Any) -> None:
    with pytest.raises(TaskError):
        qserve.get(worst.options(method_name="give_what_exits").remote(), timeout=20)


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, RuntimeError])
def test_user_code_beside_calls_cannot_end_a_replica_by_what_it_raises(kind: type[BaseException]) -> None:
    @qserve.deployment(health_check_period_s=0.05, user_config={"fail": False})
    class Shaky:
        checks = 0

        def reconfigure(self, config: dict[str, bool]) -> None:
            if config["fail"]:
                raise kind

        async def check_health(self) -> None:
            self.checks += 1
            if self.checks % 2:
                raise kind

        def __call__(self) -> tuple[int, int]:
            return os.getpid(), self.checks

    handle = qserve.run(Shaky.bind(), name="shaky", route_prefix=None)
    pid, checks = qserve.get(handle.remote(), timeout=20)
    wait_until(lambda: qserve.get(handle.remote(), timeout=20)[1] >= checks + 4, description="four checks have failed")
    assert qserve.get(handle.remote(), timeout=20)[0] == pid
    qserve.delete("shaky")
