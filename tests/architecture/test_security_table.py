"""The threat model in docs/security.md: each row names tests that exist, and SECURITY.md leads there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "docs" / "security.md").read_text().partition("## Who can do what")[2].partition("\n## ")[0]
ROWS = {line.split(" | ")[0].strip("| "): line for line in TABLE.splitlines() if line.startswith("| ")}
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_kind_of_attacker_has_a_row() -> None:
    kinds = ("client", "token", "browser", "user of the host", "address", "password", "key", "user code")

    assert not [kind for kind in kinds if not any(kind in who for who in ROWS)]


@pytest.mark.parametrize("who", [who for who in ROWS if who not in ("who", "---")])
def test_a_row_names_tests_that_exist(who: str) -> None:
    found = _TEST.findall(ROWS[who])

    assert found
    for file, name in found:
        nodes = ast.walk(ast.parse((ROOT / file).read_text()))
        assert name in {node.name for node in nodes if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"


def test_the_security_policy_leads_to_the_table() -> None:
    assert "(docs/security.md)" in (ROOT / "SECURITY.md").read_text()
