"""The fault matrix in docs/reliability.md: complete, and each row names the tests that provoke it."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [f"F{number}" for number in range(1, 73)]
_LINE = re.compile(r"^\| (F\d+) \|(.*)\|$", re.MULTILINE)
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@cache
def table() -> dict[str, str]:
    """The rows of the table, by their names."""
    text = (ROOT / "docs" / "reliability.md").read_text()
    return {found[1]: found[2] for found in _LINE.finditer(text)}


@cache
def marked() -> dict[str, set[tuple[str, str]]]:
    """The tests that carry a row's mark, by the row's name."""
    found: dict[str, set[tuple[str, str]]] = {}
    for path in sorted((ROOT / "tests").glob("*/test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            for decorator in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) in ("row", "pytest.mark.row"):
                    name = ast.literal_eval(decorator.args[0])
                    found.setdefault(name, set()).add((str(path.relative_to(ROOT)), node.name))
    return found


@pytest.mark.parametrize("name", ROWS)
def test_a_row_names_the_tests_that_carry_its_mark(name: str) -> None:
    assert set(_TEST.findall(table()[name])) == marked().get(name, set())
    assert marked().get(name), "nothing provokes it"


def test_there_are_no_other_rows() -> None:
    assert set(table()) == set(ROWS) == set(marked())
