"""The DAGDriver: the deployment that puts a graph, or several, behind HTTP."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

from qserve.define.deployments import Body_co, Deployment
from qserve.graph.nodes import Body, ClassNode, DAGNode, FunctionNode, MethodNode
from qserve.http.adapter import AdapterLike, check_adapter
from qserve.http.builtin_adapters import json_request, starlette_request


class DriverDeployment(Deployment[Body_co]):
    """A deployment of a driver class. It checks the adapter when it is bound, the graphs when they are compiled."""

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for adapter in (*args[1:2], kwargs.get("http_adapter"), kwargs.get("input_schema")):
            check_adapter(adapter)


class GraphDriver:
    """Serve a graph, or several by route, over HTTP and by handle: ``DAGDriver.bind(...)`` is the root to run.

    ``DAGDriver.bind(node)`` answers GET and POST on every path below its route prefix;
    ``DAGDriver.bind({"/a": node_a, "/b": node_b})`` answers on these paths. By handle, the input are the arguments of
    ``handle.predict.remote(*args, **kwargs)`` or ``handle.predict_with_route.remote("/a", *args, **kwargs)``, which no
    adapter changes.

    The class marks the root of an application and is never instantiated: routes and adapters are the gateway's work,
    and the steps of the graph pass their results on directly.

    Parameters:
      dags: The graph, or a dict of route to graph.
      http_adapter: Turns the request into the graph's input: a function, a pydantic model class, the import string of
        one, or None for the request itself.
      input_schema: The older name of ``http_adapter``.

    Raises:
      TypeError: What is bound is not a node, or an argument is unknown or given twice.
      ValueError: A route is not a path, or the adapter is not usable.

    Example:
      from qserve.dag import InputNode
      from qserve.http_adapters import json_request

      @serve.deployment
      def double(number: int) -> int:
          return 2 * number

      with InputNode() as number:
          graph = double.bind(double.bind(number))
      app = serve.DAGDriver.bind(graph, http_adapter=json_request)
      print(serve.run(app, local=True).predict.remote(5).result())  # 20
    """

    def __init__(
        self,
        dags: DAGNode | Mapping[str, DAGNode],
        http_adapter: AdapterLike = None,
        *,
        input_schema: AdapterLike = None,
    ) -> None:
        raise NotImplementedError


GraphDriver.__name__ = "DAGDriver"

DAGDriver: Final = DriverDeployment(GraphDriver)


def gateway_adapter(adapter: AdapterLike) -> str:
    """Return the name of an adapter that the gateway runs itself, without a call to a replica; "" for user code."""
    adapter = starlette_request if adapter is None else adapter
    return next((known.__name__ for known in (json_request, starlette_request) if known is adapter), "")


def is_driver(body: Body) -> bool:
    """Return whether a deployment's class is the DAGDriver, or derives from it."""
    return inspect.isclass(body) and issubclass(body, GraphDriver)


def driver_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, AdapterLike]:
    """Return the graph (or the dict of graphs) and the adapter that a driver was bound to.

    Raises:
      TypeError: An argument is missing, unknown, or given twice.
      ValueError: The adapter is not usable.
    """
    try:
        bound = inspect.signature(GraphDriver).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"DAGDriver.bind(): {error}. Write DAGDriver.bind(graph, http_adapter=adapter).") from None
    bound.apply_defaults()
    dags, adapter, older = bound.arguments.values()
    if adapter is not None and older is not None:
        raise TypeError(
            "DAGDriver.bind() got http_adapter and input_schema, which are one parameter under two names; give only"
            " http_adapter"
        )
    adapter = older if adapter is None else adapter
    check_adapter(adapter)
    return dags, adapter


def graphs_of(dags: Any) -> dict[str, DAGNode]:
    """Return a driver's graphs by route; a single graph has the route ``""``.

    Raises:
      TypeError: One of them is not a node that can be called.
      ValueError: A route is not a path, or there is none.
    """
    if not isinstance(dags, dict):
        return {"": _graph(dags, "DAGDriver.bind(graph)")}
    if not dags:
        raise ValueError("DAGDriver.bind({}) serves nothing. Write DAGDriver.bind({'/a': node}).")
    for route in dags:
        if not isinstance(route, str) or not route.startswith("/"):
            raise ValueError(
                f"a route of DAGDriver.bind({{route: node}}) must be a string that starts with '/', got {route!r}"
            )
    return {route: _graph(node, f"the route {route!r}") for route, node in dags.items()}


def _graph(node: Any, place: str) -> DAGNode:
    if isinstance(node, ClassNode | FunctionNode | MethodNode):
        return node
    raise TypeError(
        f"{place} of a DAGDriver needs a node, got {type(node).__name__} {node!r}. Give it the result of "
        "Class.bind(...), node.method.bind(...) or function.bind(...)."
    )
