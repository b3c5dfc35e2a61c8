"""Handles of the older kind: the first await gives a ref, and the second one its value."""

import asyncio

import ray
from ray import serve
from ray.serve.handle import RayServeHandle, RayServeSyncHandle


@serve.deployment
class Upper:
    def __call__(self, text: str) -> str:
        return text.upper()


@serve.deployment
class Reverse:
    async def turn(self, text: str) -> str:
        await asyncio.sleep(0)
        return text[::-1]


@serve.deployment
class Both:
    def __init__(self, upper: RayServeHandle, reverse: "RayServeHandle"):
        self._upper = upper
        self._reverse = reverse

    async def __call__(self, text: str) -> str:
        ref = await self._upper.remote(text)
        turned = await self._reverse.turn.remote(await ref)
        return await turned


app = Both.bind(Upper.bind(), Reverse.bind())


def main() -> str:
    handle: RayServeSyncHandle = serve.run(app)
    return ray.get(handle.remote("abc"))

# main() returns 'CBA'
