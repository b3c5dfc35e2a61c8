"""What may be an HTTP adapter: checked when it is bound, imported when it is first needed."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

Adapter = Callable[..., Any] | type[BaseModel] | str | None
"""What turns a request into a graph's input; a string is where to import it from."""


def check_adapter(adapter: Any) -> None:
    """Refuse what cannot be an HTTP adapter.

    Parameters:
      adapter: A function, a pydantic model class, an import string (looked up later) or None.

    Raises:
      ValueError: It is not callable, or one of its parameters has no annotation.
    """
    if adapter is None or isinstance(adapter, str) or _is_model(adapter):
        return
    if not callable(adapter) or hasattr(adapter, "func_or_class"):  # a deployment can be called by no request
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


def _is_model(adapter: Any) -> bool:
    return inspect.isclass(adapter) and issubclass(adapter, BaseModel)
