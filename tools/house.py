#!/usr/bin/env python3
"""Print the shape of the code: rooms, layers, arrows between them, circles, sizes.

    python tools/house.py

Run it before and after a change that moves walls. `tests/architecture` holds the code to the table below.
"""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "qserve": ROOT / "qserve",
    "qserve_workers": ROOT / "workers" / "qserve_workers",
    "qserve_gateway": ROOT / "gateway" / "qserve_gateway",
}
LAYERS: tuple[tuple[str, ...], ...] = (
    ("qserve.exceptions",),
    ("qserve.base",),
    ("qserve.graph",),
    ("qserve.wire",),
    ("qserve.broker",),
    ("qserve.calls",),
    ("qserve.http",),
    ("qserve.define",),
    ("qserve.web",),
    ("qserve.engine",),
    ("qserve.deploy",),
    ("qserve.local", "qserve.machine", "qserve.drawing"),
    ("qserve",),
    ("qserve_workers.replica", "qserve_gateway.request"),
    ("qserve_workers.celery", "qserve_gateway.response"),
    ("qserve_workers.process",),
    ("qserve_workers.supervisor",),
    ("qserve_workers", "qserve_gateway"),
    ("qserve.cli",),
    ("qserve.__main__",),
)
"""The rooms from the bottom up. A room may import those in the layers below it, and nothing else of ours."""

_DOTTED = re.compile(r"^(?:qserve|qserve_workers|qserve_gateway)(?:\.\w+)+(?::\w+)?$")


@dataclass(frozen=True)
class Arrow:
    """One import: which module names which, and on which line."""

    source: str
    target: str
    line: int


def modules() -> dict[str, Path]:
    """Every module of the three packages, by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def room_of(module: str) -> str:
    """The room that a module belongs to: the longest one of the table that its name begins with."""
    rooms = [room for layer in LAYERS for room in layer]
    return max((room for room in rooms if module == room or module.startswith(f"{room}.")), key=len)


def level_of(room: str) -> int:
    """The number of a room's layer, counted from the bottom."""
    return next(level for level, layer in enumerate(LAYERS) if room in layer)


def _named(node: ast.AST, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules that an import, or a string that stands for one, names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            yield full if full in known else node.module
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _DOTTED.match(node.value):
        name = node.value.split(":")[0]
        home = name.rpartition(".")[0]
        if name in known:
            yield name
        elif home in known and home not in PACKAGES:
            yield home


def _entry_points(known: Mapping[str, Path]) -> Iterator[Arrow]:
    """What the command line loads by the entry points of setup.cfg."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    for line in config["options.entry_points"]["qserve.commands"].strip().splitlines():
        target = line.partition("=")[2].strip().partition(":")[0]
        if target in known:
            yield Arrow("qserve.cli.main", target, 0)


def arrows() -> list[Arrow]:
    """Every import of one module of ours by another: those inside functions, in strings and for types only as well."""
    known = modules()
    found = set(_entry_points(known))
    for module, path in known.items():
        for node in ast.walk(ast.parse(path.read_text())):
            for target in _named(node, known):
                if target in known and target != module:
                    found.add(Arrow(module, target, node.lineno))  # type: ignore[attr-defined]
    return sorted(found, key=lambda arrow: (arrow.source, arrow.target, arrow.line))


def upward(found: list[Arrow]) -> list[Arrow]:
    """The arrows that lead to a room of the same layer or of a higher one."""
    return [
        arrow
        for arrow in found
        if room_of(arrow.source) != room_of(arrow.target)
        and level_of(room_of(arrow.target)) >= level_of(room_of(arrow.source))
    ]


def circle(found: list[Arrow]) -> list[str]:
    """Modules that import one another in a circle; empty when there is none."""
    targets: dict[str, set[str]] = {}
    for arrow in found:
        targets.setdefault(arrow.source, set()).add(arrow.target)
    try:
        TopologicalSorter(targets).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def main() -> None:
    """Print the table."""
    known, found = modules(), arrows()
    lines = {module: len(path.read_text().splitlines()) for module, path in known.items()}
    between = {(room_of(a.source), room_of(a.target)) for a in found if room_of(a.source) != room_of(a.target)}
    print(f"{sum(lines.values())} lines in {len(known)} modules, {len({*map(room_of, known)})} rooms")
    print(f"{len(between)} arrows between rooms, {len(upward(found))} imports upward\n")
    for level, layer in reversed(list(enumerate(LAYERS))):
        for room in layer:
            inside = [module for module in known if room_of(module) == room]
            uses = sorted(target for source, target in between if source == room)
            size = f"{len(inside):4} modules {sum(lines[module] for module in inside):6} lines"
            print(f"{level:3} {room:26}{size} -> {', '.join(uses)}")
    for arrow in upward(found):
        print(f"upward: {arrow.source}:{arrow.line} -> {arrow.target}")
    print(f"circle: {' -> '.join(circle(found)) or 'none'}")


if __name__ == "__main__":
    main()
