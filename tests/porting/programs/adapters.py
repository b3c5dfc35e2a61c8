"""HTTP adapters: by name, by text, and one of the program's own."""

import numpy as np
import ray
from ray import serve
from ray.serve import http_adapters
from ray.serve.drivers import DAGDriver
from ray.serve.deployment_graph import InputNode, RayServeDAGHandle
from ray.serve.http_adapters import NdArray, json_to_ndarray
from starlette.requests import Request


async def last_word(request: Request) -> str:
    return (await request.body()).decode().split()[-1]


@serve.deployment
def mean(array: np.ndarray) -> float:
    return float(np.mean(array))


@serve.deployment
class Own:
    def __init__(self, graph: RayServeDAGHandle):
        self.graph = graph

    async def predict(self, numbers):
        return await (await self.graph.remote(json_to_ndarray(NdArray(array=numbers))))


with InputNode() as array:
    node = mean.bind(array)

by_text = DAGDriver.bind(node, http_adapter="ray.serve.http_adapters.json_to_ndarray")
by_name = DAGDriver.bind(node, http_adapter=http_adapters.json_to_ndarray)
own = DAGDriver.bind(node, http_adapter=last_word)


def main():
    handle = serve.run(by_text)
    return ray.get(handle.predict.remote(np.array([1.0, 3.0]))), ray.get(serve.run(Own.bind(node)).predict.remote([2.0, 4.0]))

# main() returns (2.0, 3.0)
