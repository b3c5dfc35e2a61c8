"""The DAGDriver called from Python: over any node, by route, and without its adapter."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from serving import ServeRun, ask

import qserve as serve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.exceptions import RayServeException


@serve.deployment
def echo(value: Any = None) -> Any:
    return value


@serve.deployment
class Model:
    def __init__(self, weight: int = 1) -> None:
        self.weight = weight

    def forward(self, value: int) -> int:
        return value * self.weight

    def fixed(self) -> str:
        return f"fixed {self.weight}"

    def __call__(self, value: int) -> int:
        return value + self.weight


def test_the_driver_takes_a_function_node_a_method_node_or_a_class_node(run_here: ServeRun) -> None:
    with InputNode() as value:
        by_function, by_method = echo.bind(value), Model.bind(3).forward.bind(value)
        inside = run_here(DAGDriver.bind(by_function))
        assert ask(inside.predict, "in") == "in"

    assert ask(run_here(DAGDriver.bind(by_function)).predict, "out") == "out"
    several = DAGDriver.options(num_replicas=2, max_concurrent_queries=7)
    assert ask(run_here(several.bind(by_method)).predict, 5) == 15
    scaled = DAGDriver.options(autoscaling_config={"min_replicas": 1, "max_replicas": 3})
    assert ask(run_here(scaled.bind(Model.bind(3))).predict, 5) == 8
    assert ask(run_here(DAGDriver.bind(Model.bind(3).fixed.bind())).predict) == "fixed 3"


def test_predict_skips_the_adapter(run_here: ServeRun) -> None:
    def adapter(number: int) -> int:
        raise AssertionError("only HTTP requests are adapted")

    with InputNode() as value:
        handle = run_here(DAGDriver.bind(echo.bind(value), http_adapter=adapter))

    assert ask(handle.predict, "as it is") == "as it is"


def test_predict_can_be_awaited_inside_another_deployment(run_here: ServeRun) -> None:
    @serve.deployment
    class Caller:
        async def __call__(self, value: Any) -> Any:
            return await serve.get_app_handle("graph").predict.remote(value)

    with InputNode() as value:
        run_here(DAGDriver.bind(echo.bind(value)), name="graph")

    assert ask(run_here(Caller.bind()), 5) == 5


def test_a_driver_with_routes_runs_each_of_its_graphs(serve_run: ServeRun) -> None:
    @serve.deployment
    class Model:
        def __call__(self, *args: Any) -> list[Any]:
            return ["called", *args]

        def none(self) -> str:
            return "no input"

        def double(self, value: int) -> int:
            return value * 2

    with InputNode() as inp:
        model = Model.bind()
        routes = {
            "/a": echo.bind(inp[1]),
            "/b": model,
            "/c/d": model.none.bind(),
            "/double": model.double.bind(inp),
            "/give": echo.bind(inp),
            "/hello/world": echo.bind(),
            "/key": echo.bind(inp.key),
        }
        handle = serve_run(DAGDriver.bind(routes))

    async def both() -> list[Any]:
        asked = [handle.predict_with_route.remote("/double", 1), handle.predict_with_route.remote("/give", 3)]
        return list(await asyncio.gather(*asked))

    assert serve.get(handle.predict_with_route.remote("/a", 1, 2)) == 2
    assert serve.get(handle.predict_with_route.remote("/b")) == ["called"]
    assert serve.get(handle.predict_with_route.remote("/b", 1, 2)) == ["called", 1, 2]
    assert serve.get(handle.predict_with_route.remote("/c/d", "ignored")) == "no input"
    assert serve.get(handle.predict_with_route.remote("/double", 5)) == 10
    assert serve.get(handle.predict_with_route.remote("/give", 5)) == 5
    assert serve.get(handle.predict_with_route.remote("/hello/world", "ignored")) is None
    assert serve.get(handle.predict_with_route.remote("/key", other=1, key={"x": 2})) == {"x": 2}
    assert asyncio.run(both()) == [2, 3]
    with pytest.raises(RayServeException, match="/x does not exist in dags routes"):
        serve.get(handle.predict_with_route.remote("/x", 1))
