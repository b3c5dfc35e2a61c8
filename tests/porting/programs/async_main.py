#!/usr/bin/env python
"""A program with an event loop of its own."""

import asyncio
import ray
from ray import serve


@serve.deployment
class Echo:
    async def __call__(self, value):
        await asyncio.sleep(0)
        return value

    def twice(self, value):
        return [value, value]


async def ask(handle):
    refs = [handle.remote(number) for number in range(3)]
    return await asyncio.gather(*refs), await handle.twice.remote("x")


def main():
    handle = serve.run(Echo.bind())
    try:
        return asyncio.run(ask(handle))
    finally:
        ray.shutdown()

# main() returns ([0, 1, 2], ['x', 'x'])
