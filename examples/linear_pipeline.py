"""Two models in a row: the second one gets what the first one returns.

python linear_pipeline.py               # in this folder; prints 8
qserve run linear_pipeline:graph        # or as a service; POST a number
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


first = Model.bind(1)
second = Model.bind(2)

with InputNode() as user_input:
    output = second.forward.bind(first.forward.bind(user_input))

graph = DAGDriver.bind(output, http_adapter=json_request)

if __name__ == "__main__":
    handle = qserve.run(graph, port=int(os.environ.get("PORT", "8000")))
    print(qserve.get(handle.predict.remote(5)))
