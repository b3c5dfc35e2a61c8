"""User code is called alike in local mode and on replicas."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Iterator
from typing import Any

import pytest
from modes import ServeRun
from processes import wait_until

import qserve as serve
from qserve.exceptions import TaskError


@serve.deployment
class Machine:
    def __init__(self) -> None:
        self.loop_thread = 0

    async def look_around(self) -> None:
        self.loop_thread = threading.get_ident()

    def is_on_loop(self, seconds: float = 0.0) -> bool:
        time.sleep(seconds)
        return threading.get_ident() == self.loop_thread

    def items(self) -> Iterator[bool]:
        yield threading.get_ident() == self.loop_thread

    async def replica(self) -> str:
        await asyncio.sleep(0)
        return serve.get_replica_context().deployment

    def replica_later(self) -> Awaitable[str]:
        return self.replica()

    def raises(self, kind: str) -> None:
        raise {"SystemExit": SystemExit, "StopIteration": StopIteration}[kind](kind)


@pytest.fixture
def machine(serve_run: ServeRun) -> Any:
    handle = serve_run(Machine.bind())
    serve.get(handle.look_around.remote())
    return handle


def test_a_sync_method_moves_to_the_loop_once_it_is_fast_and_away_when_it_is_slow(machine: Any) -> None:
    def is_on_loop(seconds: float) -> bool:
        return bool(serve.get(machine.is_on_loop.remote(seconds)))

    def slow_call_ran_on_the_loop() -> bool:
        # a busy machine may make any call slow, which then has to prove itself again
        wait_until(lambda: is_on_loop(0.0), description="fast calls run on the loop", timeout_s=20)
        return is_on_loop(0.1)

    assert not is_on_loop(0.0), "it was not measured yet"
    wait_until(
        slow_call_ran_on_the_loop, description="a slow call runs where the fast ones before it ran", timeout_s=20
    )
    assert not is_on_loop(0.0), "the last call was slow"


def test_a_sync_generator_runs_in_the_thread(machine: Any) -> None:
    assert list(machine.options(stream=True).items.remote()) == [False]


def test_a_coroutine_that_a_sync_method_returns_knows_its_replica(machine: Any) -> None:
    assert [serve.get(machine.replica_later.remote()) for _ in range(3)] == ["Machine"] * 3


@pytest.mark.parametrize("kind", ["SystemExit", "StopIteration"])
def test_what_would_end_a_process_ends_its_call_alone(machine: Any, kind: str) -> None:
    for _ in range(3):
        with pytest.raises(TaskError, match=kind):
            serve.get(machine.raises.remote(kind))
    assert serve.get(machine.is_on_loop.remote()) is False
