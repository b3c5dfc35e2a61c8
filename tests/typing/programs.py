"""Programs as users write them, for type checkers. A line with a mistake ends in ``# expect: error``.

``# expect: error (mypy)`` marks mistakes that only mypy, with the plugin of qserve, can find.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, assert_type

from fastapi import FastAPI
from starlette.requests import Request

import qserve
import qserve as serve
from qserve import Deployment
from qserve.dag import InputNode, dag_to_dot
from qserve.deployment_graph import ClassNode, DAGNode, FunctionNode, MethodNode
from qserve.drivers import DAGDriver
from qserve.handle import (
    DeploymentHandle,
    DeploymentResponse,
    RayServeDeploymentHandle,
    RayServeHandle,
    RayServeSyncHandle,
    Ref,
)
from qserve.http_adapters import json_request

# -- deployments -----------------------------------------------------------------------------------


@serve.deployment
class Model:
    def __init__(self, weight: int, bias: int = 0) -> None:
        self.weight = weight

    def forward(self, x: int) -> int:
        return x * self.weight

    async def describe(self, name: str) -> str:
        return f"{name} {self.weight}"


@serve.deployment(num_replicas=2, max_ongoing_requests=5, user_config={"threshold": 0.5}, version="1")
class Configured:
    def reconfigure(self, user_config: dict[str, float]) -> None:
        self.threshold = user_config["threshold"]

    def __call__(self, request: Request) -> str:
        return str(self.threshold)


@serve.deployment()
@dataclass
class Record:
    path: str
    size: int = 1


@serve.deployment
class Untyped:
    def __init__(self, model, times=1):  # type: ignore[no-untyped-def]
        self.model = model

    async def __call__(self, request):  # type: ignore[no-untyped-def]
        return await (await self.model.forward.remote(1))


@serve.deployment(init_args=(2,), num_replicas=2)
class Prepared:
    def __init__(self, weight: int) -> None:
        self.weight = weight


@serve.deployment(init_kwargs={"x": 2})
def prepared(x: int) -> int:
    return x


@qserve.deployment
def double(x: int) -> int:
    return 2 * x


@qserve.deployment(name="adder", max_retries=3, retry_on=(ConnectionError, "TimeoutError"))
async def add(x: int, y: int) -> int:
    return x + y


@qserve.deployment
def hello(request: Request) -> str:
    return "hello"


@serve.deployment
def total(values: list[Ref[int]]) -> int:
    return sum(serve.get(values))


class Plain:
    def __init__(self, weight: int) -> None:
        self.weight = weight


deployed = serve.deployment(Plain)
assert_type(deployed.bind(2), ClassNode[Plain])
assert_type(deployed.options(num_replicas=3).bind(2), ClassNode[Plain])
Model.bind(2)
Model.bind(weight=2, bias=1)
Model.options(num_replicas=3).bind(2)
Record.bind("a", size=2)
assert_type(double.bind(2), FunctionNode[int])
assert_type(add.bind(1, y=2), FunctionNode[int])
assert_type(hello.bind(), FunctionNode[str])
assert_type(Model.options(name="other").num_replicas, int)
assert_type(double.options(route_prefix="/double").bind(2), FunctionNode[int])
assert_type(Model.name, str)
Untyped.bind(Model.bind(2), times=3)
Prepared.bind()
Prepared.options(num_replicas=3).bind()
prepared.bind()
any_deployment: Deployment = Model
any_deployment = double
Configured.set_options(num_replicas="auto", autoscaling_config={"max_replicas": 4})

deployed.bind("two")  # expect: error
deployed.bind()  # expect: error
Model.bind()  # expect: error
Model.bind("two")  # expect: error
Model.bind(1, 2, 3)  # expect: error
Model.bind(2, scale=1)  # expect: error
Record.bind(1)  # expect: error
Configured.bind(1)  # expect: error
Untyped.bind()  # expect: error
double.bind("two")  # expect: error
double.bind(y=2)  # expect: error
add.bind(1)  # expect: error
Model.options(num_replica=3)  # expect: error
Model.options(num_replicas="three")  # expect: error
double.options(nme="other")  # expect: error
Model.set_options(max_retry=3)  # expect: error
Model.num_replicas = 3  # expect: error
double(2)  # expect: error
serve.deployment(3)  # expect: error


@serve.deployment(num_replica=2)  # expect: error
class Misspelt:
    pass


@serve.deployment(max_concurrent_queries="many")  # expect: error
def wrong_value(x: int) -> int:
    return x


# -- graphs ----------------------------------------------------------------------------------------

model = Model.bind(2)
with InputNode() as inp:
    forward = model.forward.bind(inp)
    described = model.describe.options(name="description").bind(inp["name"])
    both = add.bind(model.forward.bind(inp.first), double.bind(inp[1]))
    output = total.bind([forward, both])

assert_type(both, FunctionNode[int])
assert_type(output, FunctionNode[int])
some_node: DAGNode = forward
method_node: MethodNode[int] = forward
graph = DAGDriver.bind(output, http_adapter=json_request)
assert_type(graph.get_label(), str)
DAGDriver.bind({"/a": forward, "/b": both}, "qserve.http_adapters.json_request")
DAGDriver.options(route_prefix="/graph").bind(output)
dag_to_dot(output).to_string()

model.forwards.bind(inp)  # expect: error (mypy)
model.forward.bind("x")  # expect: error (mypy)
model.forward.bind(1, 2)  # expect: error (mypy)
add.bind(forward)  # expect: error
DAGDriver.bind()  # expect: error
DAGDriver.bind(output, http_adapter=3)  # expect: error
DAGDriver.bind(output, adapter=json_request)  # expect: error
with InputNode() as other:
    other[1.5]  # expect: error
dag_to_dot("output")  # expect: error

# -- running and calling ---------------------------------------------------------------------------

handle = serve.run(output, name="total", port=8000)
assert_type(handle, RayServeSyncHandle[..., int])
assert_type(handle.remote(5), Ref[int])
assert_type(serve.get(handle.remote(5)), int)
assert_type(serve.get([handle.remote(5), handle.remote(6)], timeout=1), list[int])
assert_type(handle.remote(5).result(timeout_s=3), int)
assert_type(serve.get_ref("0" * 32), Ref[Any])
assert_type(handle.remote(5).request_id, str)
handle.remote(5).accepted(timeout_s=3)
serve.accepted([handle.remote(5), handle.remote(6)], timeout_s=3)
serve.accepted(5)  # expect: error
assert_type(serve.run(graph, local=True).predict.remote(5), Ref[Any])
application = serve.build(graph)
assert_type(application["Model"], Deployment)
serve.run(application)
serve.get_app_handle("total").options(stream=True).items.remote()
response = serve.get_app_handle().predict.remote(5)
assert_type(response, DeploymentResponse[Any])
serve.get(response)
with serve.connect("redis://broker", secret_key=b"k", namespace="n") as client:
    assert_type(client, serve.Client)
    assert_type(client.get_app_handle().predict.remote(5).result(), Any)
    assert_type(client.get_ref("0" * 32), Ref[Any])
    client.submit_many(client.get_deployment_handle("Model").forward, [(1,), {"value": 2}])
    client.submit_many(client.get_app_handle(), [1])  # expect: error
    client.get_app_handle(5)  # expect: error
assert_type(serve.submit_many(handle, [(5,), (6,)]), list[Ref[int]])
serve.submit_many(5, [(5,)])  # expect: error
serve.connect("redis://broker", "key")  # expect: error
serve.connect(secret_key=5)  # expect: error


async def with_client() -> Any:
    async with serve.connect() as client:
        return await client.get_app_handle().predict.remote(5)


serve.start(http_options={"port": 8000})
serve.delete("total")
serve.status()
serve.shutdown()

serve.run(Model)  # expect: error
serve.run(3)  # expect: error
serve.run(output, nam="total")  # expect: error
serve.get(3)  # expect: error
serve.get(handle.remote(5), timeout="1")  # expect: error
serve.build(Model)  # expect: error
serve.runn(output)  # expect: error


@serve.deployment
class Caller:
    def __init__(self, model: RayServeHandle, newer: DeploymentHandle, typed: DeploymentHandle[[int], int]) -> None:
        self.model, self.newer, self.typed = model, newer, typed

    async def __call__(self, request: Request) -> int:
        ref = await self.model.forward.remote(1)
        value = await self.newer.forward.remote(ref)
        for item in self.model.options(stream=True, method_name="items").remote():
            value += item
        a, b = await asyncio.gather(*[await one.forward.remote(1) for one in (self.model, self.model)])
        assert_type(await self.typed.remote(1), int)
        await self.typed.remote("x")  # expect: error
        self.model.options(steam=True)  # expect: error
        return int(value + a + b)


Caller.bind(Model.bind(1), Model.bind(2), double.bind())
Caller.bind(RayServeDeploymentHandle("Model"), DeploymentHandle("Model"), DeploymentHandle("double"))
Caller.bind(Model.bind(1), Model.bind(2), 3)  # expect: error

# -- batches, models, web applications -------------------------------------------------------------


@serve.deployment
class Batches:
    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.01)
    async def predict(self, xs: list[int]) -> list[str]:
        return [str(x) for x in xs]

    @serve.batch
    async def stream(self, xs: list[int]) -> AsyncGenerator[list[str], None]:
        yield [str(x) for x in xs]

    @serve.batch
    async def pairs(self, xs: list[int], ys: list[str]) -> list[str]:
        return ys

    @serve.batch()
    async def untyped(self, xs):  # type: ignore[no-untyped-def]
        return xs

    @serve.multiplexed
    async def load(self, model_id: str) -> bytes:
        return model_id.encode()

    @serve.multiplexed(max_num_models_per_replica=2)
    async def load_two(self, model_id: str) -> bytes:
        return model_id.encode()

    async def __call__(self, request: Request) -> str:
        assert_type(await self.predict(1), str)
        assert_type(await self.predict(xs=1), str)
        assert_type([item async for item in self.stream(1)], list[str])
        await self.pairs(1, ys="y")
        await self.untyped(1)
        self.predict.set_max_batch_size(4)
        self.predict.set_batch_wait_timeout_s(0.5)
        assert_type(await self.load(serve.get_multiplexed_model_id()), bytes)
        assert_type(await self.load_two("a"), bytes)
        await self.predict("x")  # expect: error
        await self.predict(1, 2)  # expect: error
        self.predict.set_max_batch_size("4")  # expect: error
        await self.load(3)  # expect: error
        return await self.predict(1)


@serve.batch
async def shout(words: list[str]) -> list[str]:
    return [word.upper() for word in words]


@serve.batch(max_batch=3)  # expect: error
async def wrong_option(words: list[str]) -> list[str]:
    return words


@serve.batch  # expect: error
def not_async(words: list[str]) -> list[str]:
    return words


@serve.multiplexed  # expect: error
def load_now(model_id: str) -> bytes:
    return b""


async def calls_a_function() -> None:
    assert_type(await shout("a"), str)
    await shout(1)  # expect: error


app = FastAPI()


@serve.deployment(route_prefix="/api")
@serve.ingress(app)
class Api:
    def __init__(self, model: RayServeHandle) -> None:
        self.model = model

    @app.get("/double")
    def double(self, n: int) -> int:
        return 2 * n


Api.bind(model)
Api.bind()  # expect: error
serve.deployment(serve.ingress(app)()).bind()
serve.deployment(name="api")(serve.ingress(app)()).bind(model)
context = serve.get_replica_context()
assert_type(context.app_name, str)
