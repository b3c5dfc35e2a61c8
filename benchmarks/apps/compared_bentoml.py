"""The same on BentoML: services joined with bentoml.depends, each in its own process."""

from __future__ import annotations

import bentoml  # type: ignore[import-not-found]
import numpy as np

QUIET = {"access": {"enabled": False}}  # as on the other systems, no line for each request


@bentoml.service(logging=QUIET)
class AddTwo:
    @bentoml.api(route="/")
    async def add(self, x: int) -> int:
        return x + 2


@bentoml.service(logging=QUIET)
class SubtractOne:
    @bentoml.api
    async def subtract(self, x: int) -> int:
        return x - 1


@bentoml.service(logging=QUIET)
class AddThree:
    @bentoml.api
    async def add(self, x: int) -> int:
        return x + 3


@bentoml.service(logging=QUIET)
class Chain:
    first = bentoml.depends(AddTwo)
    second = bentoml.depends(SubtractOne)
    third = bentoml.depends(AddThree)

    @bentoml.api(route="/")
    async def run(self, x: int) -> int:
        return await self.third.to_async.add(await self.second.to_async.subtract(await self.first.to_async.add(x)))


@bentoml.service(logging=QUIET)
class Zeros:
    @bentoml.api
    async def make(self, size: int) -> np.ndarray:
        return np.zeros(size, dtype=np.uint8)


@bentoml.service(logging=QUIET)
class Length:
    @bentoml.api
    async def of(self, array: np.ndarray) -> int:
        return len(array)


@bentoml.service(logging=QUIET)
class Pair:
    first = bentoml.depends(Zeros)
    second = bentoml.depends(Length)

    @bentoml.api(route="/")
    async def run(self, x: int) -> int:
        return await self.second.to_async.of(await self.first.to_async.make(x))
