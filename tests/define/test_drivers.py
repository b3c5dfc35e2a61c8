"""The DAGDriver: what it may be bound to, and which adapters it takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import cloudpickle
import pytest
from nodes import func
from pydantic import BaseModel

from qserve.define.compile import compile_application
from qserve.define.deployments import deployment
from qserve.define.drivers import DAGDriver, driver_arguments, is_driver
from qserve.deployment_graph import ClassNode
from qserve.http.adapter import check_adapter, load_adapter


class Payload(BaseModel):
    x: int


def annotated(x: int, y: str = "") -> int:
    return x


async def annotated_async(request: object) -> object:
    return request


def unannotated(x, y: int = 1):  # type: ignore[no-untyped-def]
    return x


class Callee:
    def __call__(self, x: int) -> int:
        return x


def test_the_driver_is_an_ordinary_deployment() -> None:
    driver = DAGDriver.options(
        route_prefix="/my-dag", num_replicas=2, ray_actor_options={"num_cpus": 0.1}, max_concurrent_queries=7
    )
    scaled = DAGDriver.options(autoscaling_config={"min_replicas": 1, "max_replicas": 3})

    assert DAGDriver.name == "DAGDriver"
    assert (driver.name, driver.route_prefix, driver.num_replicas) == ("DAGDriver", "/my-dag", 2)
    assert (driver.ray_actor_options, driver.max_concurrent_queries) == ({"num_cpus": 0.1}, 7)
    for one in (driver, scaled):
        node = one.bind(func.bind())
        application = compile_application(node)
        assert isinstance(node, ClassNode)
        assert application.driver is not None
        config = application.deployments[-1].config
        assert (config.num_replicas, config.autoscaling_config) == (one.num_replicas, one.config.autoscaling_config)


def test_a_class_that_derives_from_the_driver_is_a_driver() -> None:
    class Mine(DAGDriver.func_or_class):  # type: ignore[name-defined, misc]
        pass

    application = compile_application(deployment(Mine).bind(func.bind()))

    assert application.ingress.name == "Mine"
    assert application.driver is not None
    assert is_driver(DAGDriver.func_or_class)
    assert not is_driver(func.func_or_class)
    assert not is_driver(Payload)


@pytest.mark.parametrize(
    "adapter",
    [None, "pkg.mod.fn", annotated, annotated_async, Payload, Callee(), partial(annotated, 1)],
)
def test_adapters_are_functions_models_import_strings_or_nothing(adapter: Any) -> None:
    node = DAGDriver.bind(func.bind(), http_adapter=adapter)

    assert driver_arguments(node.get_args(), node.get_kwargs())[1] is adapter


@pytest.mark.parametrize(
    "bind",
    [
        lambda adapter: DAGDriver.bind(func.bind(), http_adapter=adapter),
        lambda adapter: DAGDriver.bind(func.bind(), input_schema=adapter),
        lambda adapter: DAGDriver.bind(func.bind(), adapter),
        lambda adapter: driver_arguments((func.bind(), adapter), {}),
    ],
)
def test_a_wrong_adapter_is_refused_when_the_driver_is_made(bind: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError) as caught:
        bind(["not function"])
    assert str(caught.value) == (
        "input schema must be a callable function or pydantic model class. Got ['not function'] as http_adapter."
    )
    with pytest.raises(ValueError) as caught:
        bind(unannotated)
    assert str(caught.value) == (
        "input schema function's signature should be type annotated. Parameter 'x' of "
        "'unannotated' is not: write x: Request for the request itself, or its type for a query "
        "parameter."
    )


def test_a_callable_without_a_signature_is_refused() -> None:
    with pytest.raises(ValueError, match="should be type annotated, and 'dict' shows none"):
        check_adapter(dict)


def test_a_deployment_is_no_adapter() -> None:
    with pytest.raises(ValueError, match="input schema must be a callable function"):
        check_adapter(func)


def test_import_strings_are_looked_up_by_dot_or_colon() -> None:
    assert load_adapter(f"{__name__}.annotated") is annotated
    assert load_adapter(f"{__name__}:Payload") is Payload
    assert load_adapter(annotated) is annotated
    assert load_adapter(None) is None


def test_import_strings_that_name_nothing_usable_are_refused() -> None:
    with pytest.raises(ValueError, match="http_adapter 'nodots' is not an import path"):
        load_adapter("nodots")
    with pytest.raises(ModuleNotFoundError):
        load_adapter("no_such_module.fn")
    with pytest.raises(AttributeError):
        load_adapter(f"{__name__}.nope")
    with pytest.raises(ValueError, match="type annotated"):
        load_adapter(f"{__name__}:unannotated")


def test_the_driver_class_travels_by_reference() -> None:
    body = DAGDriver.func_or_class

    assert cloudpickle.loads(cloudpickle.dumps(body)) is body
    assert body.__name__ == "DAGDriver"
