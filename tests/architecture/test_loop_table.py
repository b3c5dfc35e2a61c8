"""Every loop that must live is known, with the turn whose failure ``tests/faults/test_loops.py`` injects."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from loops import LOOPS, TURNS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import house  # noqa: E402

BEGINS = {"Thread", "create_task", "ensure_future", "call_later", "call_at", "run_coroutine_threadsafe"}
"""What begins work that goes on by itself."""


def begun(module: str, tree: ast.AST, inside: str = "") -> Iterator[str]:
    """Yield each function in which such work begins."""
    for node in ast.iter_child_nodes(tree):
        name = inside
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{inside}.{node.name}".lstrip(".")
        begins = isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in BEGINS
        if begins or (isinstance(node, ast.While) and re.match(r"True$|not self\.", ast.unparse(node.test))):
            yield f"{module}:{inside}"
        yield from begun(module, node, name)


def test_every_place_where_a_loop_begins_is_in_the_table_and_no_other() -> None:
    found = {place for module, path in house.modules().items() for place in begun(module, ast.parse(path.read_text()))}

    assert found == set(LOOPS), "add the loop to tests/support/loops.py, with its turn or with why it needs none"


@pytest.mark.parametrize("turn", TURNS)
def test_a_turn_of_the_table_exists(turn: str) -> None:
    module, _, name = turn.partition(":")
    owner, _, method = name.partition(".")

    assert callable(getattr(getattr(importlib.import_module(module), owner), method))
