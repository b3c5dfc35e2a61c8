"""Results in a list arrive as refs, which sync code gets itself."""

from typing import List

import ray
from ray import ObjectRef
from ray import serve as rs
from ray.dag.input_node import InputNode
from ray.serve.drivers import DAGDriver


@rs.deployment
class Scale:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def run(self, value: float) -> float:
        return self.factor * value


@rs.deployment
def total(refs: List[ObjectRef]) -> float:
    return sum(ray.get(refs))


with InputNode() as value:
    scales = [Scale.bind(factor) for factor in (1.0, 2.5, 4.0)]
    answers = [scale.run.bind(value) for scale in scales]
    root = DAGDriver.bind(total.bind(answers))


def main() -> float:
    return ray.get(rs.run(root).predict.remote(2), timeout=30)

# main() returns 15.0
