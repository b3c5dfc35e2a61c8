"""Results in a list arrive as refs, which sync code gets itself."""

from typing import List

import qserve
from qserve import ObjectRef
import qserve as rs
from qserve.dag.input_node import InputNode
from qserve.drivers import DAGDriver


@rs.deployment
class Scale:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def run(self, value: float) -> float:
        return self.factor * value


@rs.deployment
def total(refs: List[ObjectRef]) -> float:
    return sum(qserve.get(refs))


with InputNode() as value:
    scales = [Scale.bind(factor) for factor in (1.0, 2.5, 4.0)]
    answers = [scale.run.bind(value) for scale in scales]
    root = DAGDriver.bind(total.bind(answers))


def main() -> float:
    return qserve.get(rs.run(root).predict.remote(2), timeout=30)

# main() returns 15.0
