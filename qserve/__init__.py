"""qserve: graphs of Python deployments, served over a task queue. The root holds the public imports and nothing else.

It may import every room of qserve.
Open first: api.py, then docs/architecture.md, which has the map of the rooms and follows one request through them.
"""

from __future__ import annotations

from qserve.base import import_path

import_path.set_aside_in_commands()

import re  # noqa: E402
from importlib import import_module  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from qserve.base import context as _context  # noqa: E402

__version__ = "0.1.0"

_STUB = Path(__file__).with_suffix(".pyi").read_text()
_HOMES = {
    name: (home, own) for home, own, name in re.findall(r"^from (\S+) import (\w+) as (\w+)", _STUB, re.MULTILINE)
}
"""The module that defines each public name, and its name there: type checkers and this package read the same file."""

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    # importing on first use keeps the gateway and the command line free of what they do not need
    if name not in _HOMES:
        advice = "" if name.startswith("_") else import_module("qserve.base.unused").NAMES.get(name, "")
        raise AttributeError(f"module 'qserve' has no attribute {name!r}" + (f": {advice}" if advice else ""))
    home, own = _HOMES[name]
    with import_path.all_at_once():
        value = globals()[name] = getattr(import_module(home), own)
    return value


def import_all() -> None:
    """Import everything that a public name may need, before user code can put other modules in the place of those."""
    with import_path.all_at_once():
        for home in sorted({home for home, _ in _HOMES.values()}):
            import_module(home)


# a handle may come by pickle to a program that has not run anything yet
_context.connect = lambda: import_module("qserve.api").connect_program()
_context.execute = lambda *call: import_module("qserve.api").execute(*call)
