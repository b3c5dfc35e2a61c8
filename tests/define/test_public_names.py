"""The names of `import qserve`: listed once, in the stub, and imported when they are first used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import qserve
import qserve as serve
from qserve import dag, deployment_graph
from qserve.dag import input_node
from qserve.handle import RayServeDAGHandle


def test_the_public_names_are_these() -> None:
    assert set(qserve.__all__) == {
        *(
            "Application",
            "DAGDriver",
            "Deployment",
            "InputNode",
            "batch",
            "build",
            "deployment",
            "ingress",
            "multiplexed",
        ),
        *("delete", "run", "shutdown", "start", "status"),
        *("accepted", "get", "get_app_handle", "get_deployment_handle", "get_multiplexed_model_id", "get_ref"),
        *("get_replica_context", "get_request_context", "__version__"),
    }


@pytest.mark.parametrize("name", qserve.__all__)
def test_a_public_name_can_be_imported(name: str) -> None:
    assert getattr(qserve, name) is vars(qserve)[name]


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'qserve' has no attribute 'runn'"):
        qserve.runn  # type: ignore[attr-defined]  # noqa: B018


def test_nothing_is_imported_before_it_is_used() -> None:
    code = "import sys, qserve; print([m for m in ('pydantic', 'celery', 'flask', 'starlette') if m in sys.modules])"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_input_node_has_three_doors() -> None:
    assert dag.InputNode is deployment_graph.InputNode is input_node.InputNode is serve.InputNode
    assert deployment_graph.RayServeDAGHandle is RayServeDAGHandle
