"""The tables of what holds for programs written for Ray Serve: complete, and each row names tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLES = sorted((ROOT / "docs").glob("ray-parity*.md"))
HALVES = {"1 to 118": range(1, 119), "119 to 196": range(119, 197)}
OTHER_ERAS = {38, 39, 51, 79, 100, 136, 157, 166, 175, 182, 191, *range(192, 197)}
"""Items of other eras of Ray Serve, which a table may leave out."""

_ROW = re.compile(r"^\|\s*(\d+)\s*\|(.*)\|\s*$")
_TEST = re.compile(r"(tests/[\w/]+\.py)::(\w+)")


@cache
def rows(path: Path) -> dict[int, str]:
    """A table's rows by item number."""
    found: dict[int, str] = {}
    for line in path.read_text().splitlines():
        match = _ROW.match(line)
        if match:
            item = int(match[1])
            assert item not in found, f"{path.name} has two rows for item {item}"
            found[item] = match[2]
    return found


@cache
def names_of_tests(path: Path) -> set[str]:
    """The names of a file's test functions."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {one.name for one in nodes if isinstance(one, ast.FunctionDef) and one.name.startswith("test_")}


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.name)
def test_every_test_that_a_table_names_exists(path: Path) -> None:
    named = _TEST.findall(path.read_text())
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (ROOT / file).exists() or name not in names_of_tests(ROOT / file)
    ]

    assert not missing


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.name)
def test_a_row_names_a_test_or_says_why_there_is_none(path: Path) -> None:
    silent = [item for item, text in rows(path).items() if not _TEST.search(text) and "does not hold" not in text]

    assert not silent


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_a_half_that_was_begun_has_every_item(half: range) -> None:
    present = {item for path in TABLES for item in rows(path)} & {*half}
    if not present:
        pytest.skip("no table of these items yet")

    assert not {*half} - OTHER_ERAS - present
