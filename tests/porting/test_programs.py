"""Programs written for Ray Serve are moved, and run in this process: each file in `programs` is one.

``NAME.moved.py`` beside it is what it becomes. A comment ``# left: CODE`` says that something on its line is left, and
``# main() returns VALUE`` what the moved program answers.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import libcst as cst
import pytest
from libcst.metadata import MetadataWrapper

import qserve
from qserve.local.run import shutdown_local
from qserve.porting.move import move
from qserve.porting.names import TO_QSERVE, TO_RAY
from qserve.porting.references import References

PROGRAMS = sorted(path for path in Path(__file__).parent.glob("programs/*.py") if not path.stem.endswith(".moved"))
_LEFT = re.compile(r"# left: ([\w-]+(?:, [\w-]+)*)$")
_RETURNS = re.compile(r"^# main\(\) returns (.+)$", re.MULTILINE)


def expected_left(text: str) -> list[tuple[int, str]]:
    """Return the lines of a program at which something is left, each with its code."""
    found = [(number, _LEFT.search(line)) for number, line in enumerate(text.splitlines(), 1)]
    return [(number, code) for number, match in found if match for code in match[1].split(", ")]


@pytest.fixture(params=PROGRAMS, ids=lambda path: path.stem)
def program(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_there_are_at_least_thirty_programs() -> None:
    assert len(PROGRAMS) >= 30
    assert sum("# main() returns" in path.read_text() for path in PROGRAMS) >= 20


def test_a_program_becomes_what_stands_beside_it(program: Path) -> None:
    assert move(program.read_text(), TO_QSERVE).text == program.with_suffix(".moved.py").read_text()


def test_what_is_left_is_listed_with_its_line_and_code(program: Path) -> None:
    text = program.read_text()

    assert [(one.line, one.code) for one in move(text, TO_QSERVE).left] == expected_left(text)


def test_a_second_run_changes_nothing_and_lists_the_same(program: Path) -> None:
    first = move(program.read_text(), TO_QSERVE)

    second = move(first.text, TO_QSERVE)

    assert second.text == first.text
    assert [one.code for one in second.left] == [one.code for one in first.left]


def test_there_and_back_a_program_means_the_same(program: Path) -> None:
    text = program.read_text()
    back = move(move(text, TO_QSERVE).text, TO_RAY).text

    assert meanings(back) == meanings(text)


def test_a_program_of_qserve_is_the_same_after_it_was_at_ray(program: Path) -> None:
    there = move(move(program.read_text(), TO_QSERVE).text, TO_RAY).text

    assert meanings(move(there, TO_QSERVE).text) == meanings(program.read_text())


def meanings(text: str) -> list[str]:
    """Return what a program uses, in its order, each under the name that qserve has for it."""
    found = References(("ray", "qserve"))
    MetadataWrapper(cst.parse_module(text)).visit(found)
    names = [one.path for one in found.bindings if not one.uses and not one.is_root]
    names += [use.bindings[0].path + use.rest for use in found.uses.values()]
    return sorted((TO_QSERVE.moved(name).name or name).replace("ray.serve.", "qserve.") for name in names)


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have ``serve.run`` serve in this process."""
    monkeypatch.setattr(qserve, "run", functools.partial(qserve.run, local=True))
    yield
    shutdown_local()


def run(text: str, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a text as a module, and return what its ``main`` returns."""
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(text, f"{name}.py", "exec", dont_inherit=True), module.__dict__)
    return module.main()


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize(
    "path", [one for one in PROGRAMS if _RETURNS.search(one.read_text())], ids=lambda one: one.stem
)
def test_a_program_that_is_wholly_moved_gives_its_answer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = move(path.read_text(), TO_QSERVE)
    (answer,) = _RETURNS.findall(outcome.text)

    assert not outcome.left
    assert run(outcome.text, f"moved_{path.stem}", monkeypatch) == ast.literal_eval(answer)
