"""``preload``: run once before the replicas of a deployment, which find what it returned."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from serving import ServeRun, ask

import qserve as serve
from qserve.exceptions import DeployError


def load() -> dict[str, list[int]]:
    return {"weights": [1, 2, 3]}


async def load_later() -> int:
    return 1


def fail() -> None:
    raise ValueError("no model file")


def leave() -> None:
    sys.exit("no licence")


@serve.deployment(preload=load)
class Model:
    def __init__(self) -> None:
        self.weights = serve.get_replica_context().preloaded["weights"]

    def total(self) -> int:
        return sum(self.weights) + len(serve.get_replica_context().preloaded["weights"])


def test_constructors_and_calls_find_what_preload_returned(serve_run: ServeRun) -> None:
    assert ask(serve_run(Model.bind()).total) == 9


def test_without_preload_there_is_nothing(serve_run: ServeRun) -> None:
    @serve.deployment
    def look() -> Any:
        return serve.get_replica_context().preloaded

    assert ask(serve_run(look.bind())) is None


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (fail, r"its preload \S+:fail failed:\n(?s:.*)Traceback(?s:.*)in fail(?s:.*)ValueError: no model file"),
        (leave, r"its preload \S+:leave failed:\n(?s:.*)SystemExit: no licence"),
        (load_later, r"preload '\S+:load_later' of deployment 'Model' returned a coroutine: write `def`"),
        ("nowhere_at_all:load", r"its preload nowhere_at_all:load failed:\nmodule 'nowhere_at_all' was not found"),
    ],
)
def test_a_preload_that_fails_fails_the_start_and_what_ran_goes_on(
    serve_run: ServeRun, function: Any, why: str
) -> None:
    handle = serve_run(Model.bind())

    with pytest.raises(DeployError, match=rf"'Model' could not be started(?s:.*){why}"):
        serve_run(Model.options(preload=function).bind())
    assert ask(handle.total) == 9
