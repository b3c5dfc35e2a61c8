"""Errors of user code, and the DAGDriver called from Python, as programs written for Ray Serve rely on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.exceptions import HTTPException

import qserve as serve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver


@pytest.fixture(autouse=True)
def _local() -> Iterator[None]:
    """Everything runs in this process, and ends with the test."""
    yield
    serve.shutdown()


def run(node: Any, **options: Any) -> Any:
    return serve.run(node, local=True, **options)


@serve.deployment
def echo(value: Any) -> Any:
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


# -- errors ----------------------------------------------------------------------------------------


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


# -- the driver ------------------------------------------------------------------------------------


def test_the_driver_takes_a_function_node_a_method_node_or_a_class_node() -> None:
    with InputNode() as value:
        by_function, by_method = echo.bind(value), Model.bind(3).forward.bind(value)
        inside = run(DAGDriver.bind(by_function))
        assert serve.get(inside.predict.remote("in")) == "in"

    assert serve.get(run(DAGDriver.bind(by_function)).predict.remote("out")) == "out"
    several = DAGDriver.options(num_replicas=2, max_concurrent_queries=7)
    assert serve.get(run(several.bind(by_method)).predict.remote(5)) == 15
    scaled = DAGDriver.options(autoscaling_config={"min_replicas": 1, "max_replicas": 3})
    assert serve.get(run(scaled.bind(Model.bind(3))).predict.remote(5)) == 8
    assert serve.get(run(DAGDriver.bind(Model.bind(3).fixed.bind())).predict.remote()) == "fixed 3"


def test_predict_skips_the_adapter() -> None:
    def adapter(number: int) -> int:
        raise AssertionError("only HTTP requests are adapted")

    with InputNode() as value:
        handle = run(DAGDriver.bind(echo.bind(value), http_adapter=adapter))

    assert serve.get(handle.predict.remote("as it is")) == "as it is"


def test_predict_can_be_awaited_inside_another_deployment() -> None:
    @serve.deployment
    class Caller:
        async def __call__(self, value: Any) -> Any:
            return await serve.get_app_handle("graph").predict.remote(value)

    with InputNode() as value:
        run(DAGDriver.bind(echo.bind(value)), name="graph")

    assert serve.get(run(Caller.bind()).remote(5), timeout=10) == 5
