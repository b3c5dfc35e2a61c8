"""Import the ``module:node`` that a user names on the command line."""

from __future__ import annotations

import importlib
import operator
import sys
from typing import Any

from qserve.exceptions import QserveException


class TargetError(QserveException):
    """Raised when ``module:node`` does not lead to an object."""


def split_target(target: str) -> tuple[str, str]:
    """Return module and attribute of ``package.module:node`` or ``package.module.node``.

    Raises:
      TargetError: It is something else.
    """
    module_name, _, attribute = target.partition(":") if ":" in target else target.rpartition(".")
    if not module_name or not attribute or ":" in attribute:
        raise TargetError(f"{target!r} is not an import path. Use module:node, for example hello:app")
    return module_name, attribute


def load_target(target: str) -> Any:
    """Import the object at ``package.module:node`` or ``package.module.node``.

    Raises:
      TargetError: The path is malformed, the module is not found, or it has no such object.
      Exception: Any error that the module raises while it is imported.
    """
    module_name, attribute = split_target(target)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        searched = sys.path[0] or "the current folder"
        raise TargetError(
            f"module {error.name!r} was not found (searched from {searched}): start in its folder, or use --app-dir"
        ) from None
    try:
        return operator.attrgetter(attribute)(module)
    except AttributeError as error:
        names = ", ".join(sorted(name for name in getattr(error.obj, "__dict__", ()) if not name.startswith("_")))
        raise TargetError(f"module {module_name!r} has no {attribute!r}; it has: {names or 'nothing'}") from None
