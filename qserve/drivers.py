"""The DAGDriver: the deployment that stands for the HTTP side of one graph, or of several."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from qserve.deployments import Deployment
from qserve.exceptions import QserveException
from qserve.graph.nodes import Body

Adapter = Callable[..., Any] | type[BaseModel] | str | None
"""What turns a request into a graph's input; a string is where to import it from."""


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


def driver_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Adapter]:
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


def _takes(dags: Any, http_adapter: Adapter = None) -> None: ...


_SIGNATURE = inspect.signature(_takes)


def check_adapter(adapter: Any) -> None:
    """Refuse what cannot be an HTTP adapter.

    Parameters:
      adapter: A function, a pydantic model class, an import string (looked up later) or None.

    Raises:
      ValueError: It is not callable, or one of its parameters has no annotation.
    """
    if adapter is None or isinstance(adapter, str) or _is_model(adapter):
        return
    if not callable(adapter) or isinstance(adapter, Deployment):
        raise ValueError(
            f"input schema must be a callable function or pydantic model class. Got {adapter!r} as http_adapter."
        )
    name = getattr(adapter, "__name__", repr(adapter))
    try:
        parameters = inspect.signature(adapter).parameters.values()
    except ValueError as error:
        raise ValueError(
            f"input schema function's signature should be type annotated, and {name!r} shows none. "
            "Wrap it in a function with annotations."
        ) from error
    for parameter in parameters:
        if parameter.annotation is inspect.Parameter.empty:
            raise ValueError(
                "input schema function's signature should be type annotated. Parameter "
                f"{parameter.name!r} of {name!r} is not: write {parameter.name}: Request for the "
                "request itself, or its type for a query parameter."
            )


def load_adapter(adapter: Adapter) -> Callable[..., Any] | type[BaseModel] | None:
    """Return the adapter itself, importing it if it was given as a string.

    Parameters:
      adapter: As given to ``DAGDriver.bind``.

    Raises:
      ValueError: The string is not an import path, or what it names is not usable.
      ImportError: The module cannot be imported.
      AttributeError: The module does not have it.
    """
    if isinstance(adapter, str):
        module, _, name = adapter.rpartition(":" if ":" in adapter else ".")
        if not module or not name:
            raise ValueError(
                f"http_adapter {adapter!r} is not an import path. Write 'package.module.function' "
                "or 'package.module:function'."
            )
        adapter = getattr(importlib.import_module(module), name)
    check_adapter(adapter)
    return adapter  # type: ignore[return-value]


def unknown_route(route_path: str, routes: tuple[str, ...] = ()) -> QserveException:
    """Return the error for a route that the driver does not serve.

    Parameters:
      route_path: The route that was asked for.
      routes: The routes there are, for the message.
    """
    known = f": {', '.join(routes)}" if routes else ""
    return QserveException(f"{route_path} does not exist in dags routes{known}")


def _is_model(adapter: Any) -> bool:
    return inspect.isclass(adapter) and issubclass(adapter, BaseModel)
