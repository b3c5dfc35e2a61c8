"""The rules of a valid application, with the messages that the user reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qserve.define.deployments import Deployment
from qserve.define.drivers import is_driver
from qserve.graph.nodes import ClassNode, DAGNode, FunctionNode, InputNode, MethodNode, UnboundMethod, was_entered


def check_target(target: Any) -> None:
    """Check that the target can be the root of an application.

    Raises:
      ValueError: It is a node that needs a driver.
      TypeError: It is not a node.
    """
    if isinstance(target, ClassNode | FunctionNode):
        return
    if isinstance(target, DAGNode):
        raise ValueError(
            f"Invalid DAGNode type as entry to serve.run(), type: {type(target).__name__}, "
            "accepted: ClassNode, FunctionNode; please provide a driver class and bind it as "
            f"entrypoint to your Serve DAG. For {target.get_label()!r} write "
            "serve.run(DAGDriver.bind(node))."
        )
    advice = ""
    if isinstance(target, Deployment):
        advice = f" Write {target.name}.bind(...)."
    elif isinstance(target, UnboundMethod):
        advice = f" {target!r} is not bound yet: call its .bind(...), and give the result to a DAGDriver."
    raise TypeError(
        "Expected a ClassNode, FunctionNode, or Application as target. Got unexpected type "
        f"{type(target).__name__}.{advice}"
    )


def check_below(root: DAGNode, order: Iterable[DAGNode]) -> None:
    """Raise ValueError if a function has other deployments below it, or if one of these is a DAGDriver or has a route.

    Parameters:
      order: All nodes, the root last.
    """
    label = root.get_label()
    for node in order:
        if node is root or not isinstance(node, ClassNode | FunctionNode | MethodNode):
            continue
        if isinstance(root, FunctionNode):
            raise ValueError(
                "The ingress deployment to your application cannot be a function if there are multiple "
                f"deployments: {label!r} needs {node.get_label()!r}. Please provide a driver class: write "
                f"DAGDriver.bind(node) with the node of {label!r}, so that it is bound to a DAGDriver."
            )
        if isinstance(node, MethodNode):
            continue
        prefix = node.get_options().route_prefix
        if prefix is not None:
            raise ValueError(
                "Route prefix is only configurable on the ingress deployment. "
                f"{node.get_label()!r} has route_prefix={prefix!r}; set it on {label!r} instead."
            )
        if is_driver(node.get_body()):
            raise ValueError(
                f"{node.get_label()!r} can only be the root of an application, and {label!r} is bound to it. Bind the"
                " graph itself instead: the argument of DAGDriver.bind(...)."
            )


def check_inputs(order: Iterable[DAGNode]) -> None:
    """Raise AssertionError for a graph with two inputs, or with one that was created outside ``with``."""
    inputs = [node for node in order if isinstance(node, InputNode)]
    if len(inputs) > 1:
        raise AssertionError(
            "Each DAG should only have one unique InputNode. Share one between all nodes: with InputNode() as inp: ..."
        )
    for node in inputs:
        if not was_entered(node):
            raise AssertionError(
                "InputNode is a singleton instance that should be only used in context manager. "
                "Write `with InputNode() as inp:` instead of `inp = InputNode()`."
            )


def single_ingress(deployments: Iterable[Deployment]) -> Deployment:
    """Return the only deployment with a route prefix; raises ValueError when none or several have one."""
    found = [deployment for deployment in deployments if deployment.route_prefix is not None]
    if len(found) == 1:
        return found[0]
    names = ", ".join(repr(deployment.name) for deployment in found) or "none"
    raise ValueError(
        "Only one deployment in an Serve Application or DAG can have non-None route prefix. "
        f"{len(found)} have: {names}."
    )
