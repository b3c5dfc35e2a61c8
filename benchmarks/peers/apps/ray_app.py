"""The chain of three on Ray Serve: one deployment a step, and one that joins them."""

from __future__ import annotations

import asyncio
from typing import Any

import ledger  # type: ignore[import-not-found]
from ray import serve  # type: ignore[import-not-found]

Item = dict[str, Any]
OPTIONS = {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.1}}


@serve.deployment(**OPTIONS)
class Step:
    def __init__(self, step: str) -> None:
        self.step = step

    async def __call__(self, item: Item) -> Item:
        ledger.begin(self.step, item)
        await asyncio.sleep(ledger.STEP_S)
        result: Item = ledger.finish(self.step, item)
        return result


@serve.deployment(**OPTIONS)
class Chain:
    def __init__(self, first: Any, middle: Any, last: Any) -> None:
        self.first, self.middle, self.last = first, middle, last

    async def __call__(self, request: Any) -> Any:
        item = await request.json()
        return await self.last.remote(self.middle.remote(self.first.remote(item)))


steps = [Step.options(name=name).bind(name) for name in ("first", "middle", "last")]
chain = Chain.bind(*steps)
