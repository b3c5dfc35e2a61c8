"""Type checkers accept the programs of the documentation, and report misuse of qserve."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import docstring_examples
import pytest

from qserve.cli.starter import starter

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).with_name("programs.py")
_EXPECTED = re.compile(r"# expect: error(?: \((\w+)\))?$")
_PROGRAM = re.compile(r"^```python\n(# (\w+\.py)\n.*?)^```", re.S | re.M)

Lines = set[tuple[str, int]]
"""Lines, as pairs of a file name and a number."""


def mypy(folder: Path) -> Lines:
    """Return the lines in which mypy finds errors."""
    config = folder / "mypy.ini"
    config.write_text(
        f"[mypy]\nplugins = qserve.mypy_plugin\nmypy_path = {ROOT}\nfollow_imports = silent\n"
        f"cache_dir = {ROOT / '.mypy_cache' / 'users'}\ncheck_untyped_defs = True\ndisallow_any_generics = True\n"
    )
    return run_mypy(folder, "--config-file", str(config))


def run_mypy(folder: Path, *options: str) -> Lines:
    command = [sys.executable, "-m", "mypy", *options, "--output", "json", str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env={**os.environ, "MYPYPATH": str(ROOT)}
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line]
    return {(Path(one["file"]).name, one["line"]) for one in found if one["severity"] == "error"}


def pyright(folder: Path) -> Lines:
    """Return the lines in which pyright finds errors."""
    config = {"typeCheckingMode": "standard", "extraPaths": [str(ROOT)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = json.loads(done.stdout)["generalDiagnostics"]
    return {(Path(one["file"]).name, one["range"]["start"]["line"] + 1) for one in found if one["severity"] == "error"}


CHECKERS: list[Callable[[Path], Lines]] = [mypy, pyright]


def expected(paths: Iterable[Path], checker: str) -> Lines:
    """Return the lines in which a checker must find an error."""
    return {
        (path.name, number)
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (found := _EXPECTED.search(line)) and found[1] in (None, checker)
    }


@pytest.mark.parametrize("check", CHECKERS)
def test_checkers_report_misuse_and_nothing_else(check: Callable[[Path], Lines], tmp_path: Path) -> None:
    program = tmp_path / PROGRAMS.name
    program.write_text(PROGRAMS.read_text())

    assert check(tmp_path) == expected([program], check.__name__)


@pytest.mark.parametrize("check", CHECKERS)
@pytest.mark.parametrize("documents", ["README.md", "docs/guide.md", "docs/*-*/*.md"])
def test_checkers_accept_the_programs_of_the_documentation(
    check: Callable[[Path], Lines], documents: str, tmp_path: Path
) -> None:
    for path in ROOT.glob(documents):
        for program, name in _PROGRAM.findall(path.read_text()):
            assert not (tmp_path / name).exists(), f"two pages have a {name}"
            (tmp_path / name).write_text(program)

    assert not check(tmp_path)


def mypy_strict(folder: Path) -> Lines:
    """Return the lines in which mypy finds errors, with the settings that the tutorial has its reader save."""
    assert 'strict = true\nplugins = ["qserve.mypy_plugin"]\n' in (folder / "pyproject.toml").read_text()
    return run_mypy(folder, "--follow-imports", "silent", "--cache-dir", str(ROOT / ".mypy_cache" / "users"))


TUTORIAL = [ROOT / "docs" / "tutorial" / "index.md", *sorted((ROOT / "docs" / "tutorial").glob("[0-9]*.md"))]
_LISTING = re.compile(r"^```\w+\n# ([\w-]+\.(?:py|toml))\n(.*?)^```", re.S | re.M)


@pytest.mark.parametrize("check", [mypy_strict, pyright])
def test_checkers_accept_every_listing_of_the_tutorial(check: Callable[[Path], Lines], tmp_path: Path) -> None:
    listings = _LISTING.findall("".join(page.read_text() for page in TUTORIAL))
    for number, (name, listing) in enumerate(listings):
        path = tmp_path / name
        if path.exists():
            path.rename(tmp_path / f"before_{number}_{name}")
        path.write_text(listing)

    assert len(list(tmp_path.glob("*digits.py"))) >= 5
    assert not check(tmp_path) - untyped_imports(tmp_path)


@pytest.mark.parametrize("check", CHECKERS)
def test_checkers_accept_the_examples(check: Callable[[Path], Lines], tmp_path: Path) -> None:
    for path in (ROOT / "examples").rglob("*.py"):
        assert not (tmp_path / path.name).exists(), f"{path.name} is the name of two examples"
        (tmp_path / path.name).write_text(path.read_text())

    assert not check(tmp_path) - untyped_imports(tmp_path)


def untyped_imports(folder: Path) -> Lines:
    """Return the lines that import what is not installed for these tests, or has no types."""
    return {
        (path.name, number)
        for path in folder.glob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.match(r"from (PIL|sklearn|celery)\b", line)
    }


@pytest.mark.parametrize("check", CHECKERS)
def test_checkers_accept_the_examples_of_docstrings(check: Callable[[Path], Lines], tmp_path: Path) -> None:
    (tmp_path / "greetings.py").write_text(docstring_examples.GREETINGS)
    for path, code in docstring_examples.examples().items():
        name = re.sub(r"\W", "_", f"example_{path}")
        (tmp_path / f"{name}.py").write_text(f"{docstring_examples.PRELUDE}\n\n{code}\n")

    assert not check(tmp_path)


@pytest.mark.parametrize(
    "command",
    [
        ["mypy", "--follow-imports", "silent", "--cache-dir", str(ROOT / ".mypy_cache" / "begun")],
        ["basedpyright", "--pythonpath", sys.executable],
    ],
    ids=lambda command: command[0],
)
def test_checkers_accept_what_qserve_init_writes_with_its_own_configuration(command: list[str], tmp_path: Path) -> None:
    for name, text in starter("shop").items():
        (tmp_path / name).write_text(text)

    env = {**os.environ, "MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=tmp_path, env=env)

    assert done.returncode == 0, done.stdout + done.stderr


_OF_OTHERS = {"qserve.http.pieces.FormParser", "qserve.mypy_plugin.QservePlugin", "qserve.web.asgi.StreamedResponse"}
"""Classes whose base is another library's, which pyright does not look into here."""


def test_every_name_of_the_package_has_a_type_that_all_checkers_see_alike(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "qserve", tmp_path / "qserve", ignore=shutil.ignore_patterns("__pycache__"))
    nodes = tmp_path / "qserve" / "graph" / "nodes.py"
    text = nodes.read_text()
    # nodes derive from Any, because they may be bound to a parameter of any type; so pyright does not know them wholly
    assert text.count("class _Anything(Any):") == 1
    nodes.write_text(text.replace("class _Anything(Any):", "class _Anything:"))

    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--ignoreexternal", "--verifytypes", "qserve"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*command, "--pythonpath", sys.executable], capture_output=True, text=True, cwd=tmp_path, env=env
    )
    symbols = json.loads(done.stdout)["typeCompleteness"]["symbols"]
    assert len(symbols) > 4000
    assert {one["name"] for one in symbols if one["isExported"] and not one["isTypeKnown"]} <= _OF_OTHERS
