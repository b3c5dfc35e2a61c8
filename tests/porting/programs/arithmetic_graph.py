"""A graph of functions behind a driver, as programs for Ray Serve 2.0 were written."""

import ray
from ray import serve
from ray.serve.deployment_graph import InputNode
from ray.serve.drivers import DAGDriver
from ray.serve.http_adapters import json_request


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
    return [ray.get(handle.predict.remote(5)), ray.get(handle.predict.remote(0))]


if __name__ == "__main__":
    print(main())

# main() returns [13, 3]
