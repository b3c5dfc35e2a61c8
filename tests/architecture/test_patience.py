"""No test depends on the machine's speed: none waits less than a machine may need that does other things as well."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
LEAST_S = 9.0
"""The shortest wait, and the lowest bound on an elapsed time: ten times what is usual on an idle machine."""
_CLOCK = re.compile(r"\b(monotonic|perf_counter|elapsed|took_s)\b")


def limits(tree: ast.AST) -> Iterator[tuple[int, float]]:
    """The line and the value of each limit of a wait, and of each number that an elapsed time must not exceed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("wait_until", "wait_for", "wait_running")):
            for keyword in node.keywords:
                if keyword.arg == "timeout_s" and isinstance(keyword.value, ast.Constant):
                    yield node.lineno, float(keyword.value.value)
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Compare) and _CLOCK.search(ast.unparse(node)):
            for operator, right in zip(node.test.ops, node.test.comparators, strict=True):
                if isinstance(operator, ast.Lt | ast.LtE) and isinstance(right, ast.Constant):
                    yield node.lineno, float(right.value)


def test_no_wait_and_no_bound_on_a_time_is_shorter_than_a_busy_machine_needs() -> None:
    impatient = [
        f"{path.relative_to(TESTS.parent)}:{line}: {seconds:g} s"
        for path in sorted(TESTS.glob("*/*.py"))
        for line, seconds in limits(ast.parse(path.read_text()))
        if seconds < LEAST_S
    ]
    assert not impatient, "wait_until waits for a minute if it has no timeout_s:\n" + "\n".join(impatient)
