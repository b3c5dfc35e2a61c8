"""The same on Ray Serve: a chain of three, a single step, and an array between two steps."""

from __future__ import annotations

from typing import Any

from ray import serve  # type: ignore[import-not-found]

OPTIONS = {"ray_actor_options": {"num_cpus": 0.1}, "max_ongoing_requests": 100}


@serve.deployment(**OPTIONS)
class Add:
    def __init__(self, amount: int) -> None:
        self.amount = amount

    def add(self, x: int) -> int:
        return x + self.amount

    async def __call__(self, request: Any) -> int:
        return self.add(await request.json())


@serve.deployment(**OPTIONS)
class SubtractOne:
    def __call__(self, x: int) -> int:
        return x - 1


@serve.deployment(**OPTIONS)
class Zeros:
    def __call__(self, size: int) -> Any:
        import numpy as np  # only here, as on qserve

        return np.zeros(size, dtype=np.uint8)


@serve.deployment(**OPTIONS)
class Length:
    def __call__(self, array: Any) -> int:
        return len(array)


@serve.deployment(**OPTIONS)
class Chain:
    def __init__(self, first: Any, second: Any, third: Any) -> None:
        self.first, self.second, self.third = first, second, third

    async def __call__(self, request: Any) -> int:
        x = await request.json()
        return await self.third.add.remote(self.second.remote(self.first.add.remote(x)))


@serve.deployment(**OPTIONS)
class Pair:
    def __init__(self, first: Any, second: Any) -> None:
        self.first, self.second = first, second

    async def __call__(self, request: Any) -> int:
        return await self.second.remote(self.first.remote(await request.json()))


chain = Chain.bind(Add.options(name="add_2").bind(2), SubtractOne.bind(), Add.options(name="add_3").bind(3))
single = Add.bind(2)
array = Pair.bind(Zeros.bind(), Length.bind())
