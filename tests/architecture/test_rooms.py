"""The rooms of the code and the imports between them, as `tools/house.py` counts them."""

from __future__ import annotations

import ast
import importlib
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
    "celery": ("qserve_workers", "qserve.task_processor"),
    "kombu": ("qserve_workers",),
    "fastapi": ("qserve.http.user_adapter", "qserve.http.builtin_adapters"),
    "flask": ("qserve_gateway", "qserve.web.frameworks"),
    "gunicorn": ("qserve_gateway",),
    "libcst": ("qserve.porting", "qserve.cli.port"),
    "click": (
        "qserve.cli",
        "qserve.__main__",
        "qserve_workers.command",
        "qserve_workers.tasks.command",
        "qserve_gateway.command",
        "qserve_gateway.__main__",
        "qserve_gateway.admin.command",
        "qserve_gateway.admin.__main__",
    ),
    "mypy": ("qserve.mypy_plugin",),
    "opentelemetry": ("qserve.tracing",),
    "redis": ("qserve.broker",),
    "hiredis": ("qserve.broker",),
    "prometheus_client": ("qserve.metrics.exposition",),
    "yaml": ("qserve.appfile", "qserve.stacks"),
}
"""Foreign libraries and the only places that may import them."""
IO = {
    *("socket", "ssl", "select", "selectors", "subprocess", "multiprocessing", "asyncio", "threading", "concurrent"),
    *("tempfile", "pathlib", "shutil", "fileinput", "urllib", "http", "time", "redis", "hiredis"),
}
ACTS = re.compile(
    r"(builtins\.)?(open|print|input|breakpoint)|io\.open|sys\.(stdin|stdout|stderr)|.*\.(now|utcnow|today)"
    r"|os\.(?!environ\b|urandom\b|path\b|fspath\b|PathLike\b).+"
)
"""What reads, writes or asks the clock without an import of ``IO``."""
PURE = ("qserve.graph", "qserve.wire", "qserve.fleet.decide", "qserve.fleet.place", "qserve.fleet.wanted")
"""Rooms and modules without input and output: they import none of ``IO``, and use none of ``ACTS``."""
PUBLIC = "qserve.dag"
"""A package that is a public import path and no room."""


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def acts(text: str) -> Iterator[str]:
    """Yield what a text uses of ``ACTS``."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Name | ast.Attribute) and ACTS.fullmatch(ast.unparse(node)):
            yield f"line {node.lineno}: {ast.unparse(node)}"


def assigned_elsewhere(text: str) -> Iterator[str]:
    """Yield the assignments to attributes and items of objects that belong to another object.

    An object's own are those of ``self`` and ``cls``. A function may also set attributes of what it has just made:
    ``error = TimeLimitExceeded()``.
    """
    tree = ast.parse(text)
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module):
            continue
        nodes = [*_inside(function)]
        made = {
            name.id
            for node in nodes
            if isinstance(node, ast.Assign | ast.AnnAssign)
            and isinstance(node.value, ast.Call)
            and re.match("[A-Z]", ast.unparse(node.value.func).rpartition(".")[2])
            for name in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(name, ast.Name)
        }
        for node in nodes:
            at = f"line {getattr(node, 'lineno', 0)}: {ast.unparse(node)}"
            if isinstance(node, ast.Call) and re.search(r"\b(setattr|delattr|__setattr__)$", ast.unparse(node.func)):
                yield at
            if not isinstance(node, ast.Attribute | ast.Subscript) or isinstance(node.ctx, ast.Load):
                continue
            owner, own = node.value, ("self", "cls", *made)
            if isinstance(node, ast.Subscript):
                named = isinstance(owner, ast.Name) and owner.id not in ("vars", "globals")
                owner = owner.value if isinstance(owner, ast.Attribute) and owner.attr != "__dict__" else owner
                if named:
                    continue
            if not (isinstance(owner, ast.Name) and owner.id in own):
                yield at


def _inside(function: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a function without those of the functions in it."""
    for node in ast.iter_child_nodes(function):
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _inside(node)


def room(name: str) -> house.Room:
    return house.described(name, ast.get_docstring(ast.parse(MODULES[name].read_text())) or "")


@pytest.fixture(scope="module")
def arrows() -> list[house.Arrow]:
    return house.arrows()


def test_no_import_leads_upward(arrows: list[house.Arrow]) -> None:
    assert not [house.fault(arrow) for arrow in house.upward(arrows)]


def test_no_modules_import_one_another_in_a_circle(arrows: list[house.Arrow]) -> None:
    assert not house.circle(arrows)


@pytest.mark.parametrize("module", ["qserve.cli.run", "qserve_gateway.command", "qserve.__main__"])
def test_what_stays_in_memory_beside_a_run_imports_no_large_library(module: str) -> None:
    program = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()

    assert not {"asyncio", "redis", "msgpack", "pydantic", "starlette", "celery", "flask"} & {*loaded}


def test_every_folder_with_code_is_a_room_with_a_docstring() -> None:
    assert house.folders() == {house.folder_of(name) for name in (*ROOMS, PUBLIC)}
    assert not [name for name in (*ROOMS, PUBLIC) if not (house.folder_of(name) / "__init__.py").exists()]


def test_every_package_is_installed() -> None:
    assert house.packages_of((ROOT / "setup.cfg").read_text()) == {*ROOMS, PUBLIC}


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_says_which_file_to_open_first(name: str) -> None:
    first = room(name).first

    assert first
    assert not [file for file in first if not (house.folder_of(name) / file).exists()]


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_what_its_docstring_says(name: str, arrows: list[house.Arrow]) -> None:
    said = room(name).imports
    inside = [arrow for arrow in arrows if house.room_of(arrow.source) == name != house.room_of(arrow.target)]
    below = [arrow for arrow in inside if arrow not in house.upward(inside)]  # another test finds the others
    allowed = house.rooms() if name == "qserve" else said

    unsaid = [arrow for arrow in below if house.room_of(arrow.target) not in allowed]
    assert not [
        f"{house.path_of(arrow.source)}:{arrow.line} imports {house.room_of(arrow.target)}, which is not one of the"
        f" rooms that {name} may import: put the code into one that may, or add this room to the docstring"
        for arrow in unsaid
    ]


# `qserve api` is a process of its own with a deployer's rights, and leaves user code to its children
@pytest.mark.parametrize("name", [one for one in ROOMS if one.startswith("qserve_gateway") and "admin" not in one])
def test_the_gateway_may_import_no_room_that_calls_user_code(name: str) -> None:
    user_code = {"qserve.define", "qserve.engine", "qserve.web", "qserve.local", "qserve.deploy"}

    # the live page scales, pauses and replays as the commands do; the next test looks at what comes with that
    assert user_code & {*room(name).imports} <= ({"qserve.deploy"} if name == "qserve_gateway.ui" else set())


def test_the_live_page_imports_nothing_that_calls_user_code() -> None:
    program = "import sys, qserve_gateway.ui.page; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()

    calling = ("qserve.define", "qserve.engine", "qserve.web", "qserve.local", "qserve.appfile")
    assert not [module for module in loaded if module.startswith(calling)]


@pytest.mark.parametrize("module", [module for module in MODULES if not module.startswith("qserve.")])
def test_the_public_names_are_for_users_and_not_for_the_gateway_and_the_workers(module: str) -> None:
    """By ``from qserve import run`` they could import everything."""
    tree = ast.parse(MODULES[module].read_text())

    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "qserve"]
    assert module == "qserve" or all(f"qserve.{alias.name}" in MODULES for node in froms for alias in node.names)


@pytest.mark.parametrize("name", ROOMS)
def test_a_docstring_allows_only_imports_of_lower_rooms(name: str) -> None:
    rooms = [one for one in room(name).imports if one not in house.PACKAGES]

    assert not [one for one in rooms if house.level_of(one) >= house.level_of(name)]


def test_the_files_that_contributors_are_sent_to_exist() -> None:
    named = re.findall(r"`([\w.]+/[\w./]*)`", (ROOT / "CONTRIBUTING.md").read_text())

    assert len(named) > 20
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_paths_in_the_architecture_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    named = {*re.findall(r"`(\w[\w./]*\.(?:py|pyi|lua|md|cfg|yml)|\w+/[\w./]*)`", text)}
    files = [f"/{path.relative_to(ROOT)}/" for path in _of_the_repository()]

    assert len(named) > 40
    assert not [path for path in named if not any(file.endswith(f"/{path.rstrip('/')}/") for file in files)]


def test_the_modules_in_the_architecture_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text()

    assert not {
        name
        for name in re.findall(r"`((?:qserve|qserve_workers|qserve_gateway)\.\w[\w.]*)`", text)
        if name not in MODULES and name != "qserve.call" and not hasattr(*_split(name))  # the name of a Celery task
    }


def _split(name: str) -> tuple[object, str]:
    home, _, attribute = name.rpartition(".")
    return importlib.import_module(home), attribute


def _of_the_repository() -> Iterator[Path]:
    for top in ("qserve", "workers", "gateway", "docs", "tests", "tools"):
        yield from (ROOT / top).rglob("*")
    yield from ROOT.glob("*.*")


def test_the_documentation_shows_the_rooms_as_they_are() -> None:
    assert house.read_between("rooms") == house.table_of_rooms(), "run `make tables`"


def test_the_documentation_shows_how_much_code_there_is() -> None:
    """Within 3 %, so that not every change has to write the table."""
    shown = house.sizes_in(house.read_between("sizes"))

    assert shown == pytest.approx(house.sizes_in(house.table_of_code()), rel=0.03, abs=100), "run `make tables`"


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
        "task_consumer",
        "task_processor",
    }


@pytest.mark.parametrize("module", MODULES)
def test_foreign_libraries_come_in_by_their_doors(module: str) -> None:
    for line, name in house.foreign_imports(MODULES[module].read_text()):
        doors = DOORS.get(name.split(".")[0])
        where = f"{house.path_of(module)}:{line}"
        assert doors is None or module.startswith(doors), f"{where} imports {name}, which only {doors} may import"


@pytest.mark.parametrize(
    "text",
    [
        "import redis.asyncio",
        "def f():\n    from redis import Redis",
        "import_module('redis')",
        "importlib.import_module(name='redis')",
        "__import__('redis.client')",
        "exec('import redis')",
    ],
)
def test_a_foreign_library_is_found_however_it_is_imported(text: str) -> None:
    assert "redis" in {name.split(".")[0] for _, name in house.foreign_imports(text)}


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith(PURE)])
def test_what_only_computes_does_no_input_or_output(module: str) -> None:
    text = MODULES[module].read_text()
    named = {name.split(".")[0] for _, name in house.foreign_imports(text)}

    assert not named & IO
    assert not [*acts(text)]


@pytest.mark.parametrize(
    "text",
    [
        *("open('x')", "print(1)", "io.open('x')", "os.read(0, 1)", "sys.stderr.write('')", "os.getpid()"),
        *("datetime.datetime.now()", "date.today()", "map(print, [])"),
    ],
)
def test_input_and_output_without_an_import_are_found(text: str) -> None:
    assert [*acts(text)]


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("qserve_workers.replica.")])
def test_a_part_of_a_replica_changes_no_other_part(module: str) -> None:
    found = [*assigned_elsewhere(MODULES[module].read_text())]

    # the plane of this process, which a fork replaces
    assert not [one for one in found if not one.endswith(": current.installed")], "give that object a method"


@pytest.mark.parametrize(
    "text",
    [
        *("self.reader.quiet = True", "work.overdue_at += 1", "del self.reader.quiet", "self.reader.calls[1] = 2"),
        *("setattr(self.reader, 'quiet', True)", "object.__setattr__(work, 'x', 1)", "self.reader.__dict__['x'] = 1"),
        *("for self.reader.quiet in []: pass", "with x as self.reader.quiet: pass", "a, self.reader.quiet = 1, 2"),
        *("def f(error):\n    error.text = 1", "reader = self.reader\nreader.quiet = True"),
    ],
)
def test_an_assignment_to_another_object_is_found(text: str) -> None:
    assert [*assigned_elsewhere(text)]


@pytest.mark.parametrize("text", ["self.x = 1", "self._x[1] = 2", "x = 1", "x['a'] = 1", "e = Error()\ne.text = 1"])
def test_what_an_object_sets_of_its_own_is_not_found(text: str) -> None:
    assert not [*assigned_elsewhere(text)]


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
