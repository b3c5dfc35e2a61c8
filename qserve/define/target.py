"""Import the ``module:node`` that a user names on the command line."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from qserve.exceptions import QserveException


class TargetError(QserveException):
    """Raised when ``module:node`` does not lead to an object."""


def load_target(target: str) -> Any:
    """Import the object at ``package.module:node`` or ``package.module.node``.

    Raises:
      TargetError: The path is malformed, the module is not found, or it has no such object.
      Exception: Any error that the module raises while it is imported.
    """
    module_name, _, attribute = target.partition(":") if ":" in target else target.rpartition(".")
    if not module_name or not attribute or ":" in attribute:
        raise TargetError(f"{target!r} is not an import path. Use module:node, for example hello:app")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        searched = sys.path[0] or "the current folder"
        raise TargetError(
            f"module {error.name!r} was not found (searched from {searched}): start in its folder, or use --app-dir"
        ) from None
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            public = [known for known in vars(found) if not known.startswith("_")] if hasattr(found, "__dict__") else []
            raise TargetError(
                f"module {module_name!r} has no {attribute!r}; it has: {', '.join(sorted(public)) or 'nothing'}"
            ) from None
    return found
