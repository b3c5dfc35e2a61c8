"""The DAGDriver: the deployment that stands for the HTTP side of one graph, or of several."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from qserve.define.deployments import Deployment
from qserve.graph.nodes import Body
from qserve.http.adapter import AdapterLike, check_adapter


class DriverDeployment(Deployment):
    """A deployment of a driver class; checks the adapter as soon as it is bound."""

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """Return a class node that serves graphs.

        Parameters:
          args: The graph, or a dict of route to graph; then the HTTP adapter.
          kwargs: ``dags``, ``http_adapter``, or its older name ``input_schema``. Others are refused
            when the application is built, as with any class.

        Raises:
          ValueError: The adapter is not callable, or a parameter of it is not annotated.
        """
        adapters = [*args[1:2], kwargs.get("http_adapter"), kwargs.get("input_schema")]
        for adapter in adapters:
            check_adapter(adapter)
        return super().bind(*args, **kwargs)


class GraphDriver:
    """Serves a graph, or several by route, over HTTP and by handle.

    ``DAGDriver.bind(node)`` answers GET and POST on every path below its route prefix;
    ``DAGDriver.bind({"/a": node_a, "/b": node_b})`` answers on these paths. ``http_adapter`` turns
    the request into the input: a function, a pydantic model class, the import string of one, or
    None for the request itself. By handle: ``handle.predict.remote(*args, **kwargs)`` and
    ``handle.predict_with_route.remote("/a", *args, **kwargs)``, without the adapter.

    The class marks the root of an application and is never instantiated: routes and adapters are
    the gateway's work, and the graph's steps hand their results to one another.
    """


GraphDriver.__name__ = "DAGDriver"

DAGDriver = DriverDeployment(GraphDriver)


def is_driver(body: Body) -> bool:
    """Return whether a deployment's class is the DAGDriver, or derives from it."""
    return inspect.isclass(body) and issubclass(body, GraphDriver)


def driver_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, AdapterLike]:
    """Read what a driver was bound to.

    Parameters:
      args: The positional arguments of its bind.
      kwargs: The keyword arguments of its bind.

    Returns:
      The graph or the dict of graphs, and the adapter.

    Raises:
      TypeError: An argument is missing, unknown, or given twice.
      ValueError: The adapter is not usable.
    """
    known = {"http_adapter" if key == "input_schema" else key: kwargs[key] for key in kwargs}
    if len(known) < len(kwargs):
        raise TypeError(
            "DAGDriver.bind() got http_adapter and input_schema, which are one parameter under two "
            "names; give only http_adapter"
        )
    try:
        bound = _SIGNATURE.bind(*args, **known)
    except TypeError as error:
        raise TypeError(f"DAGDriver.bind(): {error}. Write DAGDriver.bind(graph, http_adapter=adapter).") from None
    bound.apply_defaults()
    check_adapter(bound.arguments["http_adapter"])
    return bound.arguments["dags"], bound.arguments["http_adapter"]


def _takes(dags: Any, http_adapter: AdapterLike = None) -> None: ...


_SIGNATURE = inspect.signature(_takes)
