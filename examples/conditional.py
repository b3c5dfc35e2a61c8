"""One part of the input decides how the answers of two models are combined.

    python conditional.py                   # in this folder; prints 2, then 3
    qserve run conditional:graph            # or as a service; POST [1, "max"] or [1, "sum"]

If `predict` is called with several values, they are the parts of the input: `user_input[0]`, `user_input[1]`.
"""

import os

import qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import json_request


@qserve.deployment
class Model:
    """Add the weight."""

    def __init__(self, weight: int) -> None:
        self.weight = weight

    def forward(self, value: int) -> int:
        return value + self.weight


@qserve.deployment
def combine(first: int, second: int, operation: str) -> int:
    """Combine the two answers with the operation from the input."""
    return max(first, second) if operation == "max" else first + second


left = Model.bind(0)
right = Model.bind(1)

with InputNode() as user_input:
    value, operation = user_input[0], user_input[1]
    output = combine.bind(left.forward.bind(value), right.forward.bind(value), operation)

graph = DAGDriver.bind(output, http_adapter=json_request)

if __name__ == "__main__":
    handle = qserve.run(graph, port=int(os.environ.get("PORT", "8000")))
    print(qserve.get(handle.predict.remote(1, "max")))
    print(qserve.get(handle.predict.remote(1, "sum")))
