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
            "Client",
            "DAGDriver",
            "Deployment",
            "InputNode",
            "batch",
            "build",
            "deployment",
            "ingress",
            "multiplexed",
        ),
        *(
            "RunTarget",
            "connect",
            "submit_many",
            "delete",
            "init",
            "is_initialized",
            "run",
            "run_many",
            "shutdown",
            "shutdown_async",
        ),
        *("start", "status"),
        *("ObjectRef", "cancel", "put", "wait"),
        *("accepted", "get", "get_app_handle", "get_deployment_handle", "get_multiplexed_model_id", "get_ref"),
        *(
            "call_context",
            "get_replica_context",
            "get_request_context",
            "get_trace_context",
            "progress",
            "report_progress",
        ),
        *("Event", "__version__"),
    }


@pytest.mark.parametrize("name", qserve.__all__)
def test_a_public_name_can_be_imported(name: str) -> None:
    assert getattr(qserve, name) is vars(qserve)[name]


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'qserve' has no attribute 'runn'"):
        qserve.runn  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("remote", "no tasks and actors: make it a deployment"),
        ("get_actor", "no tasks and actors"),
        ("nodes", "`qserve status` shows what runs"),
        ("get_deployment", "bind deployments, and pass the root to `run`"),
    ],
)
def test_a_name_of_ray_that_is_not_here_says_what_to_use(name: str, advice: str) -> None:
    with pytest.raises(AttributeError, match=f"no attribute '{name}': .*{advice}"):
        getattr(qserve, name)


@pytest.mark.slow
def test_programs_written_for_ray_find_their_modules() -> None:
    code = """
from qserve.config import AggregationFunction, AutoscalingConfig, AutoscalingContext, AutoscalingPolicy
from qserve.config import BackpressureConfig, HTTPOptions, ProxyLocation
from qserve.context import _serve_request_context
from qserve.exceptions import RequestCancelled
from qserve.handle import RayServeLazySyncHandle
from qserve.schema import LoggingConfig, ServeStatus
import qserve
def later(ref: qserve.ObjectRef) -> None: ...
AutoscalingConfig(aggregation_function=AggregationFunction.MAX, policy=AutoscalingPolicy(policy_function="a:b"))
print(_serve_request_context.get().request_id == "", ProxyLocation.HeadOnly, HTTPOptions(port="8001").port)
"""

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.stdout.split() == ["True", "HeadOnly", "8001"], done.stderr


def test_nothing_is_imported_before_it_is_used() -> None:
    code = "import sys, qserve; print([m for m in ('pydantic', 'celery', 'flask', 'starlette') if m in sys.modules])"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_input_node_has_three_doors() -> None:
    assert dag.InputNode is deployment_graph.InputNode is input_node.InputNode is serve.InputNode
    assert deployment_graph.RayServeDAGHandle is RayServeDAGHandle
