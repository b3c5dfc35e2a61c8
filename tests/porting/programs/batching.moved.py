import asyncio
from typing import List

import qserve
import qserve as serve
from qserve import batch


@serve.deployment
class Squares:
    def __init__(self):
        self.sizes: List[int] = []

    @batch(max_batch_size=4, batch_wait_timeout_s=0.2)
    async def many(self, numbers: List[int]) -> List[int]:
        self.sizes.append(len(numbers))
        return [number**2 for number in numbers]

    @serve.batch
    async def alone(self, numbers: List[int]) -> List[int]:
        return numbers

    async def __call__(self, number: int) -> int:
        return await self.many(number)


app = Squares.bind()


def main():
    handle = serve.run(app)
    return qserve.get([handle.remote(number) for number in range(4)])

# main() returns [0, 1, 4, 9]
