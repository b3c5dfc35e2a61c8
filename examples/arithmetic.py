"""A graph of functions and methods that adds 2, subtracts 1 and adds 3 to the number in the request.

    qserve run arithmetic:graph      # in this folder; Ctrl-C stops it
    python arithmetic_client.py      # sends 5, prints 9

Each step sends its result straight to the queue of the next step; nothing returns to a coordinator in between.
"""

from starlette.requests import Request

import qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver


@qserve.deployment
class AddCls:
    """Add the number that was bound to the constructor."""

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
    """Read the number from the JSON body of the request."""
    return await http_request.json()


add_2 = AddCls.bind(2)
add_3 = AddCls.bind(3)

with InputNode() as http_request:
    number = unpack_request.bind(http_request)
    number = add_2.add.bind(number)
    number = subtract_one_fn.bind(number)
    number = add_3.add.bind(number)

graph = DAGDriver.bind(number)
