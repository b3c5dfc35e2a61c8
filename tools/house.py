#!/usr/bin/env python3
"""Print the structure of the code: its size, its rooms, the imports between them, and what is wrong with those.

    python tools/house.py            the table (`make house`)
    python tools/house.py --walk     the same, with the files that one request passes
    python tools/house.py --write    write the tables of rooms and sizes into docs/architecture.md

Run it before and after a change that moves code from room to room. `tests/architecture` enforces the layers below.
"""

from __future__ import annotations

import argparse
import ast
import configparser
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "architecture.md"
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
    ("qserve.metrics",),
    ("qserve.broker", "qserve.tracing"),
    ("qserve.payloads",),
    ("qserve.calls", "qserve.fleet"),
    ("qserve.http",),
    ("qserve.define",),
    ("qserve.web", "qserve.appfile"),
    ("qserve.engine", "qserve.openapi"),
    ("qserve.deploy",),
    ("qserve.local", "qserve.machine", "qserve.drawing", "qserve.stacks", "qserve.overview", "qserve.porting"),
    ("qserve",),
    ("qserve.cli",),
    ("qserve_workers.replica", "qserve_workers.tasks", "qserve_gateway.request"),
    ("qserve_workers.celery", "qserve_gateway.response"),
    ("qserve_workers.process", "qserve_gateway.ui"),
    ("qserve_workers.supervisor",),
    ("qserve_workers", "qserve_gateway"),
    ("qserve_gateway.admin",),
    ("qserve.__main__",),
)
"""The rooms from the bottom up. A room may import rooms in the layers below its own, and nothing else of ours."""

_DOTTED = re.compile(r"(?:qserve|qserve_workers|qserve_gateway)(?:\.\w+)+(?::[\w.]+)?")
_IMPORTERS = ("import_module", "__import__", "exec", "eval")


@dataclass(frozen=True)
class Arrow:
    """An import of one module by another, and its line."""

    source: str
    target: str
    line: int


@dataclass(frozen=True)
class Room:
    """A room as the docstring of its ``__init__`` describes it.

    Parameters:
      holds: What lives there.
      imports: The rooms, or whole packages, that it may import.
      first: The files to open first.
    """

    name: str
    holds: str
    imports: tuple[str, ...]
    first: tuple[str, ...]


@cache
def modules() -> dict[str, Path]:
    """Return every module of the three packages by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def path_of(module: str) -> str:
    """Return the path of a module's file, from the root of the repository."""
    return str(modules()[module].relative_to(ROOT))


def folders() -> set[Path]:
    """Return every folder that has Python files, or is a package; each must be a room with an ``__init__.py``."""
    return {path.parent for package in PACKAGES.values() for path in package.rglob("*.py")}


def rooms() -> list[str]:
    """Return the rooms from the bottom up."""
    return [room for layer in LAYERS for room in layer]


def room_of(module: str) -> str:
    """Return the room of a module: the longest name in ``LAYERS`` that its own name begins with."""
    return max((room for room in rooms() if module == room or module.startswith(f"{room}.")), key=len)


def level_of(room: str) -> int:
    """Return the number of a room's layer, counted from the bottom."""
    return next(level for level, layer in enumerate(LAYERS) if room in layer)


# -- imports ---------------------------------------------------------------------------------------


def imports_of(module: str, text: str, known: Iterable[str], is_package: bool = False) -> Iterator[Arrow]:
    """Return the imports of ``known`` modules in a module's text.

    Counted are imports at the top, inside functions and under ``TYPE_CHECKING``, and strings that name a module or
    something in it, as ``import_module``, entry points and Celery's ``symbol_by_name`` take them.
    """
    known = set(known)
    for node in ast.walk(ast.parse(text)):
        for name in _names(node, module, is_package):
            target = _module_named(name, known)
            if target is None or target == module:
                continue
            if isinstance(node, ast.Constant) and target in PACKAGES:
                continue  # a string such as "qserve.access" that names no module, only begins like one
            yield Arrow(module, target, node.lineno)  # type: ignore[attr-defined]


def _names(node: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        home = _absolute(node.level, node.module or "", module, is_package)
        yield from (f"{home}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call):
        yield from _names_called(node, module, is_package)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _DOTTED.fullmatch(node.value):
        yield node.value.replace(":", ".")


def _absolute(level: int, name: str, module: str, is_package: bool) -> str:
    package = module.split(".") if is_package else module.split(".")[:-1]
    parents = package[: len(package) - level + 1] if level else []
    return ".".join([*parents, *filter(None, [name])])


def _names_called(call: ast.Call, module: str, is_package: bool) -> Iterator[str]:
    """The modules that a call of a function in ``_IMPORTERS`` imports, where it says them in so many words."""
    called = ast.unparse(call.func).rpartition(".")[2]
    if called not in _IMPORTERS:
        return
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    texts = [one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    if called in ("exec", "eval"):
        for node in (node for text in texts for node in _walk(text)):
            yield from _names(node, module, is_package)
    elif texts:
        numbers = [one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, int)]
        name = texts[0].lstrip(".")
        level = len(texts[0]) - len(name) + (numbers[0] if called == "__import__" and numbers else 0)
        anchor = texts[1] if len(texts) > 1 else module if any(ast.unparse(one) == "__name__" for one in given) else ""
        home = _absolute(level, name, anchor or module, bool(anchor) or is_package)
        listed = [item for one in given if isinstance(one, ast.List | ast.Tuple) for item in one.elts]
        taken = [f"{home}.{item.value}" for item in listed if isinstance(item, ast.Constant)]  # by __import__
        yield from taken or [home]


def _walk(text: str) -> Iterator[ast.AST]:
    try:
        return ast.walk(ast.parse(text))
    except SyntaxError:
        return iter(())


def foreign_imports(text: str) -> Iterator[tuple[int, str]]:
    """Return line and name of every import in a text, however it is written."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, node.module or ""
        if not isinstance(node, ast.Constant):
            yield from ((node.lineno, name) for name in _names(node, "", False))  # type: ignore[attr-defined]


def _module_named(name: str, known: set[str]) -> str | None:
    """The module that a dotted name leads to: itself, or the module of the attribute at its end."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def entry_points(text: str, known: Iterable[str]) -> Iterator[Arrow]:
    """Return what the command line loads by the entry points in the text of setup.cfg."""
    known = set(known)
    config = configparser.ConfigParser()
    config.read_string(text)
    for group in config["options.entry_points"].values():
        for line in group.strip().splitlines():
            target = _module_named(line.partition("=")[2].strip().replace(":", "."), known)
            if target not in (None, "qserve.__main__"):
                yield Arrow("qserve.__main__", target, 0)


def arrows() -> list[Arrow]:
    """Return every import between two modules of ours, in order."""
    known = modules()
    found = set(entry_points((ROOT / "setup.cfg").read_text(), known))
    for module, path in known.items():
        for source in filter(Path.exists, (path, path.with_suffix(".pyi"))):
            found |= {*imports_of(module, source.read_text(), known, path.name == "__init__.py")}
    return sorted(found, key=lambda arrow: (arrow.source, arrow.target, arrow.line))


def between_rooms(found: Iterable[Arrow]) -> set[tuple[str, str]]:
    """Return which room imports which, without the imports inside a room."""
    pairs = {(room_of(arrow.source), room_of(arrow.target)) for arrow in found}
    return {(source, target) for source, target in pairs if source != target}


def upward(found: Iterable[Arrow]) -> list[Arrow]:
    """Return the imports of another room in the same layer or in a higher one."""
    return [
        arrow
        for arrow in found
        if room_of(arrow.source) != room_of(arrow.target)
        and level_of(room_of(arrow.target)) >= level_of(room_of(arrow.source))
    ]


def fault(arrow: Arrow) -> str:
    """Return what is wrong with an import that leads upward: path, line and rule."""
    target, room = room_of(arrow.target), room_of(arrow.source)
    return (
        f"{path_of(arrow.source)}:{arrow.line} imports {target} (layer {level_of(target)}) from layer"
        f" {level_of(room)}: move the code down, or pass the value in"
    )


def packages_of(text: str) -> set[str]:
    """Return the packages that the text of setup.cfg lists."""
    config = configparser.ConfigParser()
    config.read_string(text)
    return {*config["options"]["packages"].split()}


def circle(found: Iterable[Arrow]) -> list[str]:
    """Return modules that import one another in a circle, with the line of each; an empty list when there are none."""
    found = list(found)
    lines = {(arrow.source, arrow.target): arrow.line for arrow in found}
    targets: dict[str, set[str]] = {}
    for arrow in found:
        targets.setdefault(arrow.source, set()).add(arrow.target)
    try:
        TopologicalSorter(targets).prepare()
    except CycleError as error:
        ring = error.args[1][::-1]  # each imports the next
        return [f"{one}:{lines[one, other]} imports {other}" for one, other in pairwise(ring)]
    return []


# -- the table of rooms ----------------------------------------------------------------------------


def described(room: str, docstring: str) -> Room:
    """Read a room's docstring.

    Raises:
      ValueError: It lacks one of the three sentences; the message shows the form.
    """
    found = re.fullmatch(r"(.+?)\n\nIt may import ([^.].*?)\.\nOpen first: (.+?)\.?", docstring.strip(), re.DOTALL)
    if found is None:
        raise ValueError(
            f"the docstring of {room} must be: a sentence about what lives there, an empty line, and the two lines"
            " 'It may import qserve.base and qserve.wire.' (or: nothing of ours) and 'Open first: one.py, then two.py.'"
        )
    holds, imports, first = (" ".join(part.split()) for part in found.groups())
    return Room(room, holds, tuple(re.findall(r"qserve[\w.]*", imports)), tuple(re.findall(r"[\w/]+\.py", first)))


def folder_of(room: str) -> Path:
    """Return the folder of a room."""
    package, _, rest = room.partition(".")
    return PACKAGES[package] / rest.replace(".", "/")


def table_of_rooms() -> str:
    """Return the table of rooms, from the top layer to the bottom, as docs/architecture.md prints it."""
    known = modules()
    lines = ["| layer | room | what lives there | it may import | open first |", "| --- | --- | --- | --- | --- |"]
    for room in reversed(rooms()):
        text = ast.get_docstring(ast.parse(known[room].read_text())) or ""
        if folder_of(room).is_dir():
            one = described(room, text)
        else:  # a room of one module
            one = Room(room, text.splitlines()[0].replace("``", "`"), (), (known[room].name,))
        imports = _short(room, one.imports)
        first = ", ".join(f"`{name}`" for name in one.first)
        lines.append(f"| {level_of(room)} | `{room}` | {one.holds} | {imports} | {first} |")
    return "\n".join(lines)


def _short(room: str, imports: tuple[str, ...]) -> str:
    own = room.partition(".")[0] + "."
    return ", ".join(f"`{name.removeprefix(own)}`" for name in imports)


def write_between(heading: str, text: str) -> None:
    """Put generated text into the section of docs/architecture.md with that heading, between its two marks."""
    document = DOCUMENT.read_text()
    begin, end = marks(heading)
    before, _, rest = document.partition(begin)
    DOCUMENT.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")


def read_between(heading: str) -> str:
    """Return what stands between the two marks of a section."""
    begin, end = marks(heading)
    return DOCUMENT.read_text().partition(begin)[2].partition(end)[0].strip("\n")


def marks(heading: str) -> tuple[str, str]:
    """Return the lines around generated text in docs/architecture.md."""
    return f"<!-- {heading}: generated by `make tables` -->", f"<!-- end of {heading} -->"


# -- the table of sizes ----------------------------------------------------------------------------


def table_of_sizes(walk: list[str] | None = None) -> str:
    """Return the sizes of the code, and what is wrong with its imports.

    Parameters:
      walk: The modules that one request passes, where they were traced.
    """
    known, found = modules(), arrows()
    source_lines = sum(len(path.read_text().splitlines()) for path in known.values())
    at_the_root = sorted(path.stem for path in PACKAGES["qserve"].glob("*.py"))
    bad, ring = upward(found), circle(found)
    rows = [
        ("source lines (Python) of the three packages", f"{source_lines:,} in {len(known)} files"),
        ("modules at the root of `qserve`", f"{len(at_the_root)}: {', '.join(at_the_root)}"),
        ("rooms", f"{len(rooms())} in {len(LAYERS)} layers"),
        ("arrows between rooms", str(len(between_rooms(found)))),
        ("imports upward", str(len(bad))),
        ("circles", "; ".join(ring) or "none"),
    ]
    if walk is not None:
        rows.append(("files that one request passes through", str(len(walk))))
    lines = ["| | qserve |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
    lines += [f"upward: {fault(arrow)}" for arrow in bad]
    return "\n".join(lines)


def table_of_code() -> str:
    """Return the table of "How much code there is", as docs/architecture.md prints it."""
    counted = dict.fromkeys(("code without imports", "imports", "docstrings", "empty", "comments"), 0)
    paths = modules().values()
    for path in paths:
        text = path.read_text()
        kinds: dict[int, str] = {}
        for node in ast.walk(ast.parse(text)):
            is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if is_text or isinstance(node, ast.Import | ast.ImportFrom):
                lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)  # type: ignore[attr-defined]
                kinds |= dict.fromkeys(lines, "docstrings" if is_text else "imports")
        for number, line in enumerate(text.splitlines(), 1):
            plain = "comments" if line.lstrip().startswith("#") else "code without imports" if line.strip() else "empty"
            counted[kinds.get(number, plain)] += 1
    rows = [("in all", sum(counted.values())), *counted.items(), ("files", len(paths))]
    return "\n".join(["| of the three packages | lines |", "| --- | --- |", *(f"| {n} | {v:,} |" for n, v in rows)])


def sizes_in(table: str) -> dict[str, int]:
    """Return the numbers of a table of ``table_of_code``."""
    return {name: int(size.replace(",", "")) for name, size in re.findall(r"\| ([^|]+) \| ([\d,]+) \|", table)}


def list_of_rooms() -> str:
    """Return a line for each room, from the top layer to the bottom: its size and the rooms that it imports."""
    known, pairs = modules(), between_rooms(arrows())
    lines = []
    for room in reversed(rooms()):
        inside = [path for module, path in known.items() if room_of(module) == room]
        size = sum(len(path.read_text().splitlines()) for path in inside)
        uses = ", ".join(sorted(target for source, target in pairs if source == room))
        lines.append(f"{level_of(room):3} {room:26}{len(inside):4} files {size:6} lines -> {uses}")
    return "\n".join(lines)


def main() -> None:
    """Print the tables, or write those of rooms and sizes into the documentation."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--walk", action="store_true", help="trace a request as well, and print its files (3 s)")
    parser.add_argument(
        "--write", action="store_true", help="write the tables of rooms and sizes into docs/architecture.md"
    )
    options = parser.parse_args()
    if options.write:
        write_between("rooms", table_of_rooms())
        write_between("sizes", table_of_code())
        return
    walked: list[str] | None = None
    if options.walk:
        import request_walk

        walked = request_walk.walk().modules
    print(f"{table_of_sizes(walked)}\n\n{list_of_rooms()}")
    for number, module in enumerate(walked or (), 1):
        print(f"{number:3} {module}")


if __name__ == "__main__":
    main()
