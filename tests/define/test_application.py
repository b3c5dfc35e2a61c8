"""``build`` and ``Application``: a graph's deployments to look at, to adjust and to run."""

from __future__ import annotations

from typing import Any

import numpy
import pytest

import qserve
from qserve.define.application import Application, build


@qserve.deployment
class Model:
    def __init__(self, weight: Any) -> None:
        self.weight = weight


@qserve.deployment
class Driver:
    def __init__(self, model: Any) -> None:
        self.model = model


def test_a_built_application_maps_names_to_deployments_in_starting_order() -> None:
    application = build(Driver.bind(Model.bind(1)))

    assert list(application) == ["Model", "Driver"]
    assert application["Driver"].init_args[0].deployment_name == "Model"
    assert application.ingress is application["Driver"]


def test_it_is_read_only() -> None:
    application = build(Model.bind(1))

    with pytest.raises(RuntimeError, match="read-only"):
        application["Model"] = Model
    with pytest.raises(RuntimeError, match="read-only"):
        application.other = Model


def test_duplicates_and_what_is_no_deployment_are_refused() -> None:
    with pytest.raises(ValueError, match="'Model' already exists"):
        Application([Model, Model])
    with pytest.raises(TypeError, match="holds deployments, got int 5"):
        Application([5])  # type: ignore[list-item]


def test_an_adjusted_deployment_is_what_is_run() -> None:
    application = build(Driver.bind(Model.bind(1)))
    application["Model"].set_options(num_replicas=3)
    application["Driver"].set_options(route_prefix="/other")

    built = application.rebuild("shop")

    assert [one.num_replicas for one in built.deployments] == [3, 1]
    assert built.ingress.route_prefix == "/other"
    assert built.deployments[-1].init_args[0].app_name == "shop"


def test_two_route_prefixes_are_refused() -> None:
    application = build(Driver.bind(Model.bind(1)))
    application["Model"].set_options(route_prefix="/model")

    with pytest.raises(ValueError, match="Only one deployment in an Serve Application or DAG can have non-None route"):
        application.rebuild("default")


def test_a_class_inside_a_function_cannot_be_built() -> None:
    @qserve.deployment
    class Local:
        pass

    with pytest.raises(RuntimeError, match="'Local' must be importable"):
        build(Local.bind())


def test_arguments_must_be_json() -> None:
    with pytest.raises(TypeError, match="Object of type ndarray is not JSON serializable"):
        build(Model.bind(numpy.zeros(2)))
