"""Multiplexed models: calls come to a replica that already holds the model, while one that does is free."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes import Started, wait_until

import qserve

pytestmark = pytest.mark.usefixtures("started")


@qserve.deployment(num_replicas=3)
class Shelf:
    def __init__(self, gate: Path | None = None) -> None:
        self.gate = gate

    @qserve.multiplexed(max_num_models_per_replica=2)
    async def load(self, model_id: str) -> str:
        return f"model {model_id}"

    async def __call__(self, request: Any = None) -> tuple[str, int]:
        model = await self.load(qserve.get_multiplexed_model_id())
        return model, os.getpid()

    async def hold(self) -> int:
        assert self.gate is not None
        await self.load(qserve.get_multiplexed_model_id())
        while not self.gate.exists():
            await asyncio.sleep(0.01)
        return os.getpid()


def ask(model_id: str) -> tuple[str, int]:
    handle = qserve.get_app_handle().options(multiplexed_model_id=model_id)
    return handle.remote().result(timeout_s=60)


def test_calls_for_a_model_stay_with_the_replica_that_holds_it() -> None:
    qserve.run(Shelf.bind())
    homes = {model_id: ask(model_id)[1] for model_id in "abc"}

    answers = [(model_id, *ask(model_id)) for _ in range(20) for model_id in "abc"]

    assert {(model_id, pid) for model_id, _, pid in answers} == set(homes.items())
    assert {(model_id, model) for model_id, model, _ in answers} == {(one, f"model {one}") for one in "abc"}


def test_a_model_whose_replica_is_busy_is_loaded_by_another(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    qserve.run(Shelf.options(max_ongoing_requests=1).bind(gate))
    home = ask("a")[1]
    wait_until(lambda: ask("a")[1] == home, description="the model has a home")
    held = qserve.get_app_handle().hold.options(multiplexed_model_id="a").remote()

    other = wait_until(lambda: ask("a")[1] != home, description="another replica answers for the model")

    gate.touch()
    assert other
    assert held.result(timeout_s=60) == home


def test_calls_of_a_dead_holder_go_to_the_others() -> None:
    qserve.run(Shelf.bind())
    home = ask("a")[1]

    os.kill(home, signal.SIGKILL)

    model, pid = ask("a")
    assert (model, pid != home) == ("model a", True)


def test_a_version_with_models_is_replaced_cleanly() -> None:
    qserve.run(Shelf.bind())
    ask("a")

    qserve.run(Shelf.bind())

    assert ask("a")[0] == "model a"


@qserve.deployment
class Many:
    def __init__(self) -> None:
        self.loaded: list[str] = []

    @qserve.multiplexed(max_num_models_per_replica=2)
    async def model(self, model_id: str) -> str:
        self.loaded.append(model_id)
        return f"model {model_id}"

    async def __call__(self, request: Any = None) -> list[Any]:
        return [await self.model(qserve.get_multiplexed_model_id()), len(self.loaded)]


@pytest.mark.parametrize("header", ["serve_multiplexed_model_id", "serve-multiplexed-model-id"])
def test_the_model_is_named_by_a_header_or_by_an_option_of_the_handle(started: Started, header: str) -> None:
    handle = qserve.run(Many.bind())

    assert httpx.get(started.url, headers={header: "a"}).json() == ["model a", 1]
    assert httpx.get(started.url, headers={"serve_multiplexed_model_id": "a", "x_other": "1"}).json() == ["model a", 1]
    assert qserve.get(handle.options(multiplexed_model_id="a").remote()) == ["model a", 1]
    assert qserve.get(handle.options(multiplexed_model_id="b").remote()) == ["model b", 2]
