"""The table of what calls share, in docs/guide.md: each row names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "docs" / "guide.md").read_text().partition("## What calls share")[2].partition("\n## ")[0]
ROWS = [line for line in TABLE.splitlines() if line.startswith("| ") and " --- " not in line][1:]
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_everything_that_calls_could_share_has_a_row() -> None:
    kinds = ("context", "cancellation", "directory", "environment", "globals", "threads", "fork", "signals", "loop")

    assert not [kind for kind in kinds if not any(kind in row.split(" | ")[0] for row in ROWS)]


@pytest.mark.parametrize("row", ROWS, ids=[row.split(" | ")[0].strip("| ") for row in ROWS])
def test_a_row_names_tests_that_exist(row: str) -> None:
    found = _TEST.findall(row)

    assert found
    for file, name in found:
        nodes = ast.walk(ast.parse((ROOT / file).read_text()))
        assert name in {node.name for node in nodes if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"
