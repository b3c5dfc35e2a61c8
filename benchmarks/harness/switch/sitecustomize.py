"""Imported by each Python process of benchmarks/metrics.py: lets it switch what is counted off and on, by signals."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

ON, OFF = signal.SIGRTMIN + 1, signal.SIGRTMIN + 2
_USERS = {
    "qserve_workers.replica.commit": ("Committer", "_metrics", lambda counted: None),
    "qserve_gateway.application": ("Gateway", "_answer", lambda counted: counted.args[0]),
    "qserve.metrics.totals": ("Reporter", "flush", lambda counted: lambda: None),
}
"""Who counts calls and requests, and tells it: module, class, attribute, and its value where nothing is counted."""
_switches: list[Callable[[bool], None]] = []


class _Finder:
    """Notes the instances of these classes."""

    @staticmethod
    def find_spec(name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name not in _USERS:
            return None
        spec = PathFinder.find_spec(name, path, target)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            _follow(getattr(module, _USERS[name][0]), *_USERS[name][1:])

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _follow(cls: Any, attribute: str, without: Callable[[Any], Any]) -> None:
    create = cls.__init__

    def created(self: Any, *args: Any, **options: Any) -> None:
        create(self, *args, **options)
        counted = getattr(self, attribute)
        plain = without(counted)
        _switches.append(lambda is_on: setattr(self, attribute, counted if is_on else plain))

    cls.__init__ = created


def _switch(number: int, _: object) -> None:
    for switch in _switches:
        switch(number == ON)


sys.meta_path.insert(0, _Finder)  # type: ignore[arg-type]
signal.signal(ON, _switch)
signal.signal(OFF, _switch)
