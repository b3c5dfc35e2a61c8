"""Send one input to two models at the same time, and combine their answers.

    python branching_input.py               # in this folder; prints 3
    qserve run branching_input:graph        # or as a service; POST a number

Results inside a list arrive as refs, so `combine` decides when to wait for them.
"""

import os

import qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.handle import Ref
from qserve.http_adapters import json_request


@qserve.deployment
class Model:
    """Add the weight."""

    def __init__(self, weight: int) -> None:
        self.weight = weight

    def forward(self, value: int) -> int:
        return value + self.weight


@qserve.deployment
def combine(value_refs: list[Ref]) -> int:
    """Wait for both answers, and add them up."""
    return sum(qserve.get(value_refs))


left = Model.bind(0)
right = Model.bind(1)

with InputNode() as user_input:
    output = combine.bind([left.forward.bind(user_input), right.forward.bind(user_input)])

graph = DAGDriver.bind(output, http_adapter=json_request)

if __name__ == "__main__":
    handle = qserve.run(graph, port=int(os.environ.get("PORT", "8000")))
    print(qserve.get(handle.predict.remote(1)))
