import qserve.exceptions
from qserve.dag import InputNode
from qserve.drivers import DAGDriver as Driver


@qserve.deployment
def combine(left: int, right: int, how: str) -> int:
    if how == "max":
        return max(left, right)
    return left + right


@qserve.deployment
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
    handle = qserve.run(app)
    try:
        return [qserve.get(handle.predict.remote(1, how)) for how in ("max", "sum")]
    except qserve.exceptions.RayTaskError as error:
        return [str(error)]

# main() returns [2, 3]
