"""Errors of user code, and the DAGDriver called from Python, as programs written for Ray Serve rely on them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.exceptions import HTTPException

import qserve as serve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.exceptions import RayServeException, RayTaskError
from qserve.http_adapters import json_request


@pytest.fixture(autouse=True)
def _local() -> Iterator[None]:
    """Everything runs in this process, and ends with the test."""
    yield
    serve.shutdown()


def run(node: Any, **options: Any) -> Any:
    return serve.run(node, local=True, **options)


@serve.deployment
def echo(value: Any = "nothing") -> Any:
    return value


@serve.deployment
class Model:
    def __init__(self, weight: int = 1) -> None:
        self.weight = weight

    def forward(self, value: int) -> int:
        return value * self.weight

    def fixed(self) -> str:
        return f"fixed {self.weight}"

    def __call__(self, value: int = 0) -> int:
        return value + self.weight


# -- errors ----------------------------------------------------------------------------------------


def test_an_error_is_caught_by_its_own_type_and_by_the_task_errors() -> None:
    @serve.deployment
    def fail() -> None:
        raise ZeroDivisionError("over nothing")

    handle = run(fail.bind())

    for kind in (ZeroDivisionError, RayTaskError, RayServeException):
        with pytest.raises(kind, match="over nothing"):
            serve.get(handle.remote())


def test_an_error_shows_the_line_that_raised_it_on_the_replica() -> None:
    @serve.deployment
    class Deep:
        def __call__(self) -> None:
            self.inner()

        def inner(self) -> None:
            raise LookupError("here it broke")

    with pytest.raises(LookupError) as caught:
        serve.get(run(Deep.bind()).remote())

    text = str(caught.value)
    assert "Traceback" in text
    assert 'raise LookupError("here it broke")' in text
    assert "in inner" in text


class TenantError(Exception):
    def __init__(self, tenant: str, code: int) -> None:
        super().__init__(f"no tenant {tenant}")
        self.tenant, self.code = tenant, code
        self.connection = object()


def test_an_error_keeps_the_plain_attributes_that_its_constructor_set() -> None:
    @serve.deployment
    def fail() -> None:
        raise TenantError("acme", code=7)

    with pytest.raises(TenantError) as caught:
        serve.get(run(fail.bind()).remote())

    assert (caught.value.tenant, caught.value.code) == ("acme", 7)
    assert not hasattr(caught.value, "connection")


def test_a_caller_reads_status_and_detail_of_an_http_exception_from_below() -> None:
    @serve.deployment
    def fail() -> None:
        raise HTTPException(status_code=404, detail={"missing": "item"}, headers={"x-reason": "gone"})

    @serve.deployment
    class Front:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def __call__(self) -> Any:
            try:
                return await (await self.inner.remote())
            except HTTPException as error:
                return error.status_code, error.detail, error.headers

    got = serve.get(run(Front.bind(fail.bind())).remote())

    assert got == (404, {"missing": "item"}, {"x-reason": "gone"})


def test_too_many_arguments_are_pythons_own_type_error() -> None:
    @serve.deployment
    def nothing() -> int:
        return 1

    handle = run(nothing.bind())

    with pytest.raises(TypeError, match="takes 0 positional arguments but 1 was given"):
        serve.get(handle.remote(1))
    with pytest.raises(TypeError, match="got an unexpected keyword argument"):
        serve.get(handle.remote(key=1))


def test_an_error_in_one_request_leaves_the_others_alone() -> None:
    @serve.deployment
    def invert(value: float) -> float:
        return 1 / value

    with InputNode() as number:
        handle = run(DAGDriver.bind(echo.bind(invert.bind(number))))

    refs = [handle.predict.remote(value) for value in (1, 0, 2)]

    with pytest.raises(ZeroDivisionError):
        serve.get(refs[1])
    assert serve.get([refs[0], refs[2]]) == [1.0, 0.5]


def test_an_error_of_a_called_deployment_can_be_caught_in_the_caller() -> None:
    @serve.deployment
    def fail() -> None:
        raise KeyError("inner")

    @serve.deployment
    class Careful:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def __call__(self) -> str:
            try:
                await (await self.inner.remote())
            except KeyError:
                return "caught"
            return "nothing happened"

    assert serve.get(run(Careful.bind(fail.bind())).remote()) == "caught"


# -- the driver ------------------------------------------------------------------------------------


def test_the_driver_takes_a_function_node_a_method_node_or_a_class_node() -> None:
    with InputNode() as value:
        by_function, by_method = echo.bind(value), Model.bind(3).forward.bind(value)
        inside = run(DAGDriver.bind(by_function))
        assert serve.get(inside.predict.remote("in")) == "in"

    assert serve.get(run(DAGDriver.bind(by_function)).predict.remote("out")) == "out"
    assert serve.get(run(DAGDriver.bind(by_method)).predict.remote(5)) == 15
    assert serve.get(run(DAGDriver.bind(Model.bind(3))).predict.remote(5)) == 8
    assert serve.get(run(DAGDriver.bind(Model.bind(3).fixed.bind())).predict.remote()) == "fixed 3"


def test_the_driver_is_configured_as_any_deployment() -> None:
    assert DAGDriver.name == "DAGDriver"
    driver = DAGDriver.options(
        route_prefix="/my-dag", num_replicas=2, ray_actor_options={"num_cpus": 0.1}, max_concurrent_queries=7
    )
    scaled = DAGDriver.options(autoscaling_config={"min_replicas": 1, "max_replicas": 3})

    assert (driver.route_prefix, driver.num_replicas, driver.max_concurrent_queries) == ("/my-dag", 2, 7)
    assert serve.get(run(driver.bind(Model.bind())).predict.remote(1)) == 2
    assert serve.get(run(scaled.bind(Model.bind())).predict.remote(1)) == 2


def test_predict_skips_the_adapter() -> None:
    def adapter(number: int) -> int:
        raise AssertionError("only HTTP requests are adapted")

    with InputNode() as value:
        handle = run(DAGDriver.bind(echo.bind(value), http_adapter=adapter))

    assert serve.get(handle.predict.remote("as it is")) == "as it is"


def test_predict_takes_several_values_and_keywords() -> None:
    @serve.deployment
    def combine(*values: Any) -> list[Any]:
        return list(values)

    with InputNode() as given:
        handle = run(DAGDriver.bind(combine.bind(given[0], given[1])))
        named = run(DAGDriver.bind(combine.bind(given[0], given.key)), name="named")

    assert serve.get(handle.predict.remote(1, "max")) == serve.get(handle.predict.remote([1, "max"])) == [1, "max"]
    assert serve.get(named.predict.remote(1, key=2)) == [1, 2]


def test_predict_can_be_awaited_inside_another_deployment() -> None:
    @serve.deployment
    class Caller:
        async def __call__(self, value: Any) -> Any:
            return await serve.get_app_handle("graph").predict.remote(value)

    with InputNode() as value:
        run(DAGDriver.bind(echo.bind(value)), name="graph")

    assert serve.get(run(Caller.bind()).remote(5), timeout=10) == 5


@pytest.fixture
def routed() -> Any:
    """A driver over every kind of node."""
    with InputNode() as value:
        model = Model.bind(2)
        routes = {
            "/my_D1": model.forward.bind(value),
            "/my_D2": echo.bind(value),
            "/my_D3": model,
            "/my_D4": model.fixed.bind(),
            "/hello/world": echo.bind(),
        }
        return run(DAGDriver.bind(routes, http_adapter=json_request))


def test_predict_with_route_runs_that_routes_graph(routed: Any) -> None:
    assert serve.get(routed.predict_with_route.remote("/my_D1", 5)) == 10
    assert serve.get(routed.predict_with_route.remote("/my_D2", 5)) == 5
    assert serve.get(routed.predict_with_route.remote("/my_D3", 5)) == 7


def test_method_and_function_nodes_of_a_route_get_only_what_was_bound(routed: Any) -> None:
    assert serve.get(routed.predict_with_route.remote("/my_D4", "ignored")) == "fixed 2"
    assert serve.get(routed.predict_with_route.remote("/hello/world", "ignored")) == "nothing"


def test_a_class_node_of_a_route_that_is_called_without_arguments_gets_none(routed: Any) -> None:
    assert serve.get(routed.predict_with_route.remote("/my_D3")) == 2


def test_an_unknown_route_is_refused_in_rays_words(routed: Any) -> None:
    with pytest.raises(RayServeException, match="/nowhere does not exist in dags routes"):
        serve.get(routed.predict_with_route.remote("/nowhere", 1))


def test_one_input_node_serves_all_routes(routed: Any) -> None:
    async def both() -> list[Any]:
        return list(
            await asyncio.gather(
                routed.predict_with_route.remote("/my_D1", 1), routed.predict_with_route.remote("/my_D2", 2)
            )
        )

    assert asyncio.run(both()) == [2, 2]


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        (["not function"], "callable"),
        (lambda value: value, "type annotated"),
    ],
)
def test_a_wrong_adapter_is_refused_when_the_driver_is_bound(adapter: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DAGDriver.bind(echo.bind(), http_adapter=adapter)
