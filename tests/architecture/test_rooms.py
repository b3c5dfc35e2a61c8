"""The rooms of the code and the imports between them, as `tools/house.py` counts them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import house  # noqa: E402

MODULES = house.modules()
ROOMS = [room for room in house.rooms() if house.folder_of(room).is_dir()]
DOORS = {
    "celery": ("qserve_workers",),
    "kombu": ("qserve_workers",),
    "fastapi": ("qserve.http.user_adapter", "qserve.http.builtin_adapters"),
    "flask": ("qserve_gateway", "qserve.web.frameworks"),
    "gunicorn": ("qserve_gateway",),
    "click": (
        "qserve.cli",
        "qserve.__main__",
        "qserve_workers.command",
        "qserve_gateway.command",
        "qserve_gateway.__main__",
    ),
    "mypy": ("qserve.mypy_plugin",),
    "redis": ("qserve.broker",),
    "hiredis": ("qserve.broker",),
    "yaml": ("qserve.appfile",),
}
"""Foreign libraries and the only places that may import them."""
IO = {"socket", "subprocess", "asyncio", "threading", "tempfile", "pathlib", "urllib", "http", "redis", "hiredis"}
PURE = ("qserve.graph", "qserve.wire", "qserve.fleet.decide", "qserve.fleet.place", "qserve.fleet.wanted")
"""Rooms and modules without input and output: they import none of ``IO``."""


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def imports_by_name(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (one.value for one in node.args if isinstance(one, ast.Constant))


def room(name: str) -> house.Room:
    return house.described(name, ast.get_docstring(ast.parse(MODULES[name].read_text())) or "")


@pytest.fixture(scope="module")
def arrows() -> list[house.Arrow]:
    return house.arrows()


def test_no_import_leads_upward(arrows: list[house.Arrow]) -> None:
    assert not house.upward(arrows)


def test_no_modules_import_one_another_in_a_circle(arrows: list[house.Arrow]) -> None:
    assert not house.circle(arrows)


@pytest.mark.parametrize("module", ["qserve.cli.run", "qserve_gateway.command", "qserve.__main__"])
def test_what_stays_in_memory_beside_a_run_imports_no_large_library(module: str) -> None:
    program = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()

    assert not {"asyncio", "redis", "msgpack", "pydantic", "starlette", "celery", "flask"} & {*loaded}


def test_every_package_is_a_room() -> None:
    assert {module for module, path in MODULES.items() if path.name == "__init__.py"} == {*ROOMS, "qserve.dag"}


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_says_which_file_to_open_first(name: str) -> None:
    first = room(name).first

    assert first
    assert not [file for file in first if not (house.folder_of(name) / file).exists()]


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_what_its_docstring_says(name: str, arrows: list[house.Arrow]) -> None:
    said = room(name).imports
    inside = [arrow for arrow in arrows if house.room_of(arrow.source) == name]
    used = {house.room_of(arrow.target) for arrow in inside} - {name}

    unsaid = {one for one in used if one not in said and one.partition(".")[0] not in said}
    assert not unsaid, f"the docstring of {name} must say 'It may import ...' of: {', '.join(sorted(unsaid))}"


@pytest.mark.parametrize("name", ROOMS)
def test_a_docstring_allows_only_imports_of_lower_rooms(name: str) -> None:
    rooms = [one for one in room(name).imports if one not in house.PACKAGES]

    assert not [one for one in rooms if house.level_of(one) >= house.level_of(name)]


def test_the_files_that_contributors_are_sent_to_exist() -> None:
    named = re.findall(r"`([\w.]+/[\w./]*)`", (ROOT / "CONTRIBUTING.md").read_text())

    assert len(named) > 20
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_documentation_shows_the_rooms_as_they_are() -> None:
    assert house.read_between("rooms") == house.table_of_rooms(), "run `make tables`"


def test_the_root_holds_the_public_doors_and_nothing_else() -> None:
    doors = {path.stem for path in (ROOT / "qserve").glob("*.py")}

    assert doors == {
        "__init__",
        "__main__",
        "api",
        "client",
        "config",
        "context",
        "deployment_graph",
        "drivers",
        "exceptions",
        "handle",
        "http_adapters",
        "mypy_plugin",
        "schema",
    }


@pytest.mark.parametrize("module", MODULES)
def test_foreign_libraries_come_in_by_their_doors(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    for name in [*imports(tree), *imports_by_name(tree)]:
        doors = DOORS.get(name.split(".")[0])
        assert doors is None or module.startswith(doors), f"{module} imports {name}"


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith(PURE)])
def test_what_only_computes_does_no_input_or_output(module: str) -> None:
    named = {name.split(".")[0] for name in imports(ast.parse(MODULES[module].read_text()))}

    assert not named & IO


@pytest.mark.parametrize("module", MODULES)
def test_no_import_of_our_own_is_hidden_in_a_function(module: str) -> None:
    for function in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            hidden = [name for name in imports(function) if name.split(".")[0] in house.PACKAGES]
            assert not hidden, f"{function.name} imports {hidden}"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is_for(module: str) -> None:
    text = MODULES[module].read_text()

    assert not text.strip() or ast.get_docstring(ast.parse(text))
