"""Import the ``module:node`` that a user names on the command line."""

from __future__ import annotations

import importlib
import operator
import re
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from qserve.base.import_path import importing_user_code, user_folders
from qserve.exceptions import UsageProblem
from qserve.graph.nodes import Target

_SHOWN = 12
"""How many names of a module an error lists."""


class TargetError(UsageProblem):
    """Raised when ``module:node`` does not lead to an object."""


def split_target(target: str) -> tuple[str, str]:
    """Return module and attribute of ``package.module:node`` or ``package.module.node``.

    Raises:
      TargetError: It is something else.
    """
    module_name, _, attribute = target.partition(":") if ":" in target else target.rpartition(".")
    words = [*module_name.split("."), *attribute.split(".")]
    path = re.fullmatch(r"(?:(.*)[/\\])?(.*?)(\.py)?", module_name if ":" in target else target)
    if path and (path[1] is not None or path[3]):
        folder = f" --app-dir {path[1] or '/'}" if path[1] is not None else ""
        node = attribute if ":" in target else "NODE"
        raise TargetError(f"{target!r} is a file path. Use a module name:{folder} {path[2]}:{node}")
    if not all(words) or ":" in attribute:
        example = f"{target}:NODE" if re.fullmatch(r"[\w.]*\w", target) else "module:node"
        raise TargetError(f"{target!r} is not an import path. Use {example}, for example hello:app")
    return module_name, attribute


def load_target(target: str) -> Any:
    """Import the object at ``package.module:node`` or ``package.module.node``.

    Raises:
      TargetError: The path is malformed, the module is not found, or it has no such object.
      BaseException: Any error that the module raises while it is imported.
    """
    module_name, attribute = split_target(target)
    try:
        with importing_user_code():
            module = importlib.import_module(module_name)
            _check_origin(module_name.partition(".")[0])
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        searched = next(iter(user_folders()), "") or sys.path[0] or "the current folder"
        raise TargetError(
            f"module {error.name!r} was not found (searched from {searched}): start in its folder, or use --app-dir"
        ) from None
    try:
        found = operator.attrgetter(attribute)(module)
    except AttributeError as error:
        if attribute.partition(".")[0] in vars(module) and not hasattr(error.obj, "__dict__"):
            raise
        found = _submodule(f"{module_name}.{attribute}")
        if found is None:
            here = error.obj if hasattr(error.obj, "__dict__") else module
            what = f"module {module_name!r}" if here is module else f"{module_name}:{attribute.rpartition('.')[0]}"
            last = attribute if here is module else attribute.rpartition(".")[2]
            raise TargetError(f"{what} has no {last!r}; it has: {_names(here)}") from None
    if isinstance(found, ModuleType):
        raise TargetError(
            f"{target} cannot be served: it is a module. Use {found.__name__}:NODE; it has: {_names(found)}"
        )
    return found


def _submodule(name: str) -> ModuleType | None:
    """Return the module that was named without its node."""
    try:
        with importing_user_code():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        return None


def _names(module: Any) -> str:
    """Return the names of the nodes in a module; where there is none, all of its names."""
    public = sorted(name for name in vars(module) if not name.startswith("_"))
    nodes = [name for name in public if isinstance(vars(module)[name], Target)]
    shown = (nodes or public)[:_SHOWN]
    return ", ".join(shown) + (", …" if len(shown) < len(nodes or public) else "") or "nothing"


# -- files that have the name of another module ----------------------------------------------------


def _check_origin(top: str) -> None:
    """Refuse the user's module whose name belongs to one that this process has imported before."""
    wanted = PathFinder.find_spec(top, list(user_folders()))
    module = sys.modules.get(top)
    # a deploy may have sent the module from a folder of another host
    is_users = getattr(getattr(module, "__loader__", None), "is_users", False)
    if is_users or wanted is None or wanted.loader is None or wanted.origin is None:
        return
    origin = Path(getattr(module, "__file__", None) or "")
    if not (origin.exists() and origin.samefile(wanted.origin)):
        raise TargetError(f"{wanted.origin} {_has_name_of(top)}, which qserve has imported itself: rename it")


def _has_name_of(name: str) -> str:
    return f"has the name of {'a module of Python' if name in sys.stdlib_module_names else 'an installed package'}"


def shadows(error: BaseException) -> str:
    """Say which file of the user may have caused an error because it has the name of another module; "" for none."""
    found = [f"{path} {_has_name_of(name)}" for name, path in _namesakes() if _is_involved(name, path, error)]
    return f"{', '.join(found)}: rename it, if that is the cause" if found else ""


def _namesakes() -> Iterator[tuple[str, str]]:
    others = [entry for entry in sys.path if entry not in user_folders()]
    for folder in user_folders():
        files = Path(folder).iterdir() if Path(folder).is_dir() and folder not in others else ()
        for name in sorted({file.name.removesuffix(".py") for file in files}):
            spec = PathFinder.find_spec(name, [folder]) if name.isidentifier() else None
            if spec is None or spec.origin is None or spec.loader is None:
                continue
            is_library = name in sys.stdlib_module_names or PathFinder.find_spec(name, others) is not None
            if is_library:
                yield name, spec.origin


def _is_involved(name: str, path: str, error: BaseException | None) -> bool:
    """Return whether a library has imported the file, or the user's own code the module that has its name."""
    while error is not None:
        files, trace = [], error.__traceback__
        while trace is not None:
            files.append(trace.tb_frame.f_code.co_filename)
            trace = trace.tb_next
        missing_from = getattr(getattr(error, "obj", None), "__name__", "") if isinstance(error, AttributeError) else ""
        text = str(error) if isinstance(error, ImportError | SyntaxError) else ""
        files.append(getattr(error, "filename", None) or "")
        if path in files or f"'{name}'" in text or path in text or missing_from == name:
            return True
        error = error.__cause__ or error.__context__
    return False
