"""Marks that tie a test to its row of the fault matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest

PRIORITY = frozenset(f"F{number}" for number in (1, 2, 3, 5, 7, 9, 16, 17, 18, 21, 28, 29, 31, 32, 42))
"""The rows that cover every clause of the promise; they run with the whole suite, the others with `make chaos`."""
_Test = TypeVar("_Test", bound=Callable[..., object])


def row(name: str, *, priority: bool = False) -> Callable[[_Test], _Test]:
    """Mark a test as one of the row ``name``, such as ``F1``; ``priority`` lets it run with the whole suite."""

    def mark(test: _Test) -> _Test:
        kind = pytest.mark.priority if priority or name in PRIORITY else pytest.mark.chaos
        return kind(pytest.mark.row(name)(test))

    return mark
