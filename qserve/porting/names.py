"""A name of one package in the other one: ``ray.serve.run`` is ``qserve.run``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec

from qserve.porting import table
from qserve.porting.table import Advice


@dataclass(frozen=True)
class Moved:
    """What a dotted name becomes.

    Parameters:
      name: The whole of it; None if it cannot be moved.
      module: The module to import for it.
      advice: Why it cannot be moved.
    """

    name: str | None
    module: str = ""
    advice: Advice = table.NO_ADVICE


@dataclass(frozen=True)
class Direction:
    """One of both ways to go.

    Parameters:
      source: The package that a program is moved from.
      target: The one that it is moved to.
      left: What cannot be moved, with advice.
      unknown: Advice for everything else that cannot be moved.
    """

    source: str
    target: str
    left: Mapping[str, Advice]
    unknown: Advice

    @cached_property
    def names(self) -> dict[str, list[tuple[str, str]]]:
        """Functions and classes, and what each may become: a module, and a name in it."""
        found: dict[str, list[tuple[str, str]]] = {}
        for here, there, old, new in self._rows:
            found.setdefault(f"{here}.{old}", []).append((there, new))
        return found

    @cached_property
    def modules(self) -> dict[str, list[str]]:
        """Modules, and what each may become."""
        found: dict[str, list[str]] = {}
        for here, there, _, _ in self._rows:
            found.setdefault(here, []).append(there)
        return found

    @cached_property
    def _target_modules(self) -> set[str]:
        return {there for _, there, _, _ in self._rows}

    @cached_property
    def _known(self) -> set[str]:
        return {f"{there}.{new}" for _, there, _, new in self._rows} | self._target_modules

    @cached_property
    def _rows(self) -> list[tuple[str, str, str, str]]:
        rows = []
        for in_ray, in_qserve, names in table.TABLE:
            ray, qserve = f"ray.{in_ray}".rstrip("."), f"qserve.{in_qserve}".rstrip(".")
            for pair in names.split():
                old, _, new = pair.partition("=")
                rows.append((ray, qserve, old, new or old))
        return rows if self.source == "ray" else [(there, here, new, old) for here, there, old, new in rows]

    def moved(self, name: str, near: str = "") -> Moved:
        """Return what a dotted name becomes; what follows a function or a class stays as it is.

        Parameters:
          near: The module of the target to take it from, if that has it as well.
        """
        for known, rest in prefixes(name):
            if known in self.names:
                found = self.names[known]
                module, new = next((one for one in found if one[0] == near), found[0])
                return Moved(f"{module}.{new}{rest}", module)
            if known in self.modules and not rest:
                module = near if near in self.modules[known] else self.modules[known][0]
                return Moved(module, module)
        return Moved(None, advice=self.advice(name))

    def stray(self, name: str) -> Advice | None:
        """Return advice for a name of the target that nothing there has, such as one that was moved with its module."""
        for known, rest in prefixes(name):
            if known in self._known:
                return self._stray_below(known, rest) if known in self._target_modules and rest else None
        return None

    def _stray_below(self, module: str, rest: str) -> Advice | None:
        if self.target == "ray":  # which has more than the table names
            return table.OWN.get(f"qserve{rest}") if module == "ray.serve" else None
        here, name = import_module(module), rest.split(".")[1]
        if hasattr(here, name) or (hasattr(here, "__path__") and find_spec(f"{module}.{name}")):
            return None
        found = (self._most_exact(f"{old}{rest}") for old, new in self.modules.items() if module in new)
        return next(filter(None, found), self.unknown)

    def advice(self, name: str) -> Advice:
        """Return why a name cannot be moved."""
        return self._most_exact(name) or self.unknown

    def _most_exact(self, name: str) -> Advice | None:
        return next((self.left[known] for known, _ in prefixes(name) if known in self.left), None)


def prefixes(name: str) -> Iterator[tuple[str, str]]:
    """Yield every beginning of a dotted name with the rest, the longest first."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        rest = ".".join(parts[length:])
        yield ".".join(parts[:length]), f".{rest}" if rest else ""


TO_QSERVE = Direction("ray", "qserve", table.LEFT, table.UNKNOWN)
TO_RAY = Direction("qserve", "ray", table.OWN, table.QSERVE_ONLY)
