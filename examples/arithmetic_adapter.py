"""The graph of arithmetic.py, with an HTTP adapter instead of the first step.

    qserve run arithmetic_adapter:graph      # in this folder; Ctrl-C stops it
    python arithmetic_client.py              # sends 5, prints 9

`json_request` turns the request into its JSON body, so the graph's input is a number, both over HTTP
and from Python (see arithmetic_python.py).
"""

import qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import json_request


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


add_2 = AddCls.bind(2)
add_3 = AddCls.bind(3)

with InputNode() as request_number:
    number = add_2.add.bind(request_number)
    number = subtract_one_fn.bind(number)
    number = add_3.add.bind(number)

graph = DAGDriver.bind(number, http_adapter=json_request)
