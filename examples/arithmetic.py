"""A graph of functions and methods: what is sent, + 2, - 1, + 3.

    qserve run arithmetic:graph      # in this folder; Ctrl-C stops it
    python arithmetic_client.py      # sends 5, prints 9

Each step hands its result straight to the next one's queue; nothing comes back in between.
"""

from starlette.requests import Request

import qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver


@qserve.deployment
class AddCls:
    """Adds the number that it was bound to."""

    def __init__(self, increment: int) -> None:
        self.increment = increment

    def add(self, number: int) -> int:
        return number + self.increment


@qserve.deployment
def subtract_one_fn(number: int) -> int:
    """Subtract one."""
    return number - 1


@qserve.deployment
async def unpack_request(http_request: Request) -> int:
    """Take the number out of the request's JSON body."""
    return await http_request.json()


add_2 = AddCls.bind(2)
add_3 = AddCls.bind(3)

with InputNode() as http_request:
    number = unpack_request.bind(http_request)
    number = add_2.add.bind(number)
    number = subtract_one_fn.bind(number)
    number = add_3.add.bind(number)

graph = DAGDriver.bind(number)
