"""The applications of the comparison, on qserve: a chain of three, a single step, and an array between two steps."""

from __future__ import annotations

from typing import Any

import qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import json_request


@qserve.deployment
class Add:
    def __init__(self, amount: int) -> None:
        self.amount = amount

    def add(self, x: int) -> int:
        return x + self.amount


@qserve.deployment
def subtract_one(x: int) -> int:
    return x - 1


@qserve.deployment
def zeros(size: int) -> Any:
    import numpy as np  # only here, so that the other applications do not hold it

    return np.zeros(size, dtype=np.uint8)


@qserve.deployment
def length(array: Any) -> int:
    return len(array)


first, last = Add.bind(2), Add.bind(3)
with InputNode() as number:
    three = last.add.bind(subtract_one.bind(first.add.bind(number)))
    one = Add.bind(2).add.bind(number)
    made = length.bind(zeros.bind(number))
chain = DAGDriver.bind(three, http_adapter=json_request)
single = DAGDriver.bind(one, http_adapter=json_request)
array = DAGDriver.bind(made, http_adapter=json_request)
