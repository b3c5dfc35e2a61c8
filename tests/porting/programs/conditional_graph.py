import ray
import ray.serve
from ray.serve.dag import InputNode
from ray.serve.drivers import DAGDriver as Driver


@ray.serve.deployment
def combine(left: int, right: int, how: str) -> int:
    if how == "max":
        return max(left, right)
    return left + right


@ray.serve.deployment
class Model:
    def __init__(self, weight: int):
        self.weight = weight

    def forward(self, value: int) -> int:
        return self.weight + value


first, second = Model.bind(0), Model.bind(1)
with InputNode() as given:
    node = combine.bind(first.forward.bind(given[0]), second.forward.bind(given[0]), how=given[1])
    app = Driver.bind(node)


def main():
    handle = ray.serve.run(app)
    try:
        return [ray.get(handle.predict.remote(1, how)) for how in ("max", "sum")]
    except ray.exceptions.RayTaskError as error:
        return [str(error)]

# main() returns [2, 3]
