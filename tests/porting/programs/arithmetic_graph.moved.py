"""A graph of functions behind a driver, as programs for Ray Serve 2.0 were written."""

import qserve
import qserve as serve
from qserve.deployment_graph import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import json_request


@serve.deployment
def double(number: int) -> int:
    return number * 2


@serve.deployment
class Add:
    def __init__(self, amount: int):
        self.amount = amount

    def add(self, number: int) -> int:
        return number + self.amount


# one node of each kind
with InputNode() as number:
    adder = Add.bind(3)
    doubled = double.bind(number)
    graph = DAGDriver.bind(adder.add.bind(doubled), http_adapter=json_request)


def main():
    handle = serve.run(graph)
    return [qserve.get(handle.predict.remote(5)), qserve.get(handle.predict.remote(0))]


if __name__ == "__main__":
    print(main())

# main() returns [13, 3]
