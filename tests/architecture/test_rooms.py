"""The house keeps its shape: sizes, arrows, doors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "qserve": ROOT / "qserve",
    "qserve_workers": ROOT / "workers" / "qserve_workers",
    "qserve_gateway": ROOT / "gateway" / "qserve_gateway",
}
MODULES = [path for folder in PACKAGES.values() for path in sorted(folder.rglob("*.py"))]
MODULE_LINES = 300
FUNCTION_LINES = 40
DOORS = {
    "celery": {"qserve_workers"},
    "flask": {"qserve_gateway"},
    "gunicorn": {"qserve_gateway"},
    "click": {"qserve.cli", "qserve_workers.command", "qserve_gateway.command", "qserve_gateway.__main__"},
    "kombu": {"qserve.plane.transport", "qserve_workers.app"},
    "hiredis": {"qserve.plane", "qserve_workers.consumer"},
}
"""Foreign libraries and the only places that import them."""


def name_of(path: Path) -> str:
    for package, folder in PACKAGES.items():
        if path.is_relative_to(folder):
            parts = path.relative_to(folder).with_suffix("").parts
            return ".".join((package, *(part for part in parts if part != "__init__")))
    raise AssertionError(path)


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def ids(path: Path) -> str:
    return name_of(path)


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_a_module_is_not_too_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MODULE_LINES


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_a_function_fits_on_a_screen(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]
            assert length <= FUNCTION_LINES, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_no_import_of_our_own_is_hidden_in_a_function(path: Path) -> None:
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            hidden = [name for name in imports(function) if name.split(".")[0] in PACKAGES]
            assert not hidden, f"{function.name} imports {hidden}"


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_arrows_between_the_packages_point_at_qserve_only(path: Path) -> None:
    own = name_of(path).split(".")[0]
    allowed = {"qserve", own}
    for name in imports(ast.parse(path.read_text())):
        package = name.split(".")[0]
        assert package not in PACKAGES or package in allowed, f"{name_of(path)} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_foreign_libraries_come_in_by_their_doors(path: Path) -> None:
    own = name_of(path)
    for name in imports(ast.parse(path.read_text())):
        doors = DOORS.get(name.split(".")[0])
        assert doors is None or any(own.startswith(door) for door in doors), f"{own} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_every_module_says_what_lives_there(path: Path) -> None:
    text = path.read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text))


def test_there_are_no_import_cycles() -> None:
    graph = {name_of(path): set[str]() for path in MODULES}
    for path in MODULES:
        tree = ast.parse(path.read_text())
        for node in tree.body:
            for name in imports(node) if not isinstance(node, ast.If) else ():
                graph[name_of(path)] |= {name} & graph.keys()
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.module in graph:
                full = {f"{node.module}.{one.name}" for one in node.names}
                graph[name_of(path)] |= full & graph.keys()
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"cycle: {' -> '.join((*above, name))}"
        if name not in done:
            for target in graph[name] - {name}:
                visit(target, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_map_of_the_house_names_files_that_exist() -> None:
    text = ast.get_docstring(ast.parse((ROOT / "qserve" / "__init__.py").read_text())) or ""
    named = [word for word in text.replace("``", " ").split() if "/" in word or word == "ref"]
    assert len(named) >= 9
    for word in named:
        package, _, rest = word.partition("/")
        folder = PACKAGES.get(package)
        path = folder / rest if folder else ROOT / "qserve" / word
        assert path.exists() or path.with_suffix(".py").exists(), word
