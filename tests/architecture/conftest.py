"""What the tests of this folder need to read the source."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def no_garbage_from_other_tests() -> Iterator[None]:
    """Keep the collector from running while a syntax tree is built.

    It may end a task that another test has left behind with an error. Python 3.11 builds a tree to print the traceback
    of that, and then cannot finish the first ("AST constructor recursion depth mismatch").
    """
    gc.collect()
    gc.disable()
    yield
    gc.enable()
