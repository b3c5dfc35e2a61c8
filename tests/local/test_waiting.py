"""Un-awaited calls where programs treat them as asyncio's tasks."""

from __future__ import annotations

import asyncio
from typing import Any

import qserve


@qserve.deployment
class Model:
    async def __call__(self, value: int) -> int:
        return value + 1


@qserve.deployment
class Caller:
    def __init__(self, model: Any) -> None:
        self.model = model

    async def __call__(self) -> list[int]:
        calls = [self.model.remote(number) for number in range(3)]
        done, late = await asyncio.wait(calls, timeout=10)
        assert not late
        assert all(call.done() and call.exception() is None for call in done)
        return [await call.result() for call in calls]

    async def first(self) -> int:
        done, _ = await asyncio.wait([self.model.remote(1)], return_when=asyncio.FIRST_COMPLETED)
        return await done.pop().result()


def test_calls_can_be_waited_for_like_tasks() -> None:
    handle = qserve.run(Caller.bind(Model.bind()), local=True)

    assert qserve.get(handle.remote(), timeout=10) == [1, 2, 3]
    assert qserve.get(handle.first.remote(), timeout=10) == 2
