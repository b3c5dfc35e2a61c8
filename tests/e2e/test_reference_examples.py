"""The examples in docstrings that call what runs do what their comments say, in a program that has started it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import docstring_examples
import pytest
from processes import free_port

import qserve
from qserve import api

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def started() -> Iterator[dict[str, Any]]:
    """The names of the program that the reference shows; where it starts, a port is free."""
    port, api.DEFAULT_PORT = api.DEFAULT_PORT, free_port()
    yield {"__name__": "__main__"}
    qserve.shutdown()
    api.DEFAULT_PORT = port


def program(started: dict[str, Any]) -> dict[str, Any]:
    """Return the same once it has started an installation, which some of the examples end."""
    if not qserve.is_initialized():
        exec(docstring_examples.PRELUDE, started)
    return dict(started)


def test_the_examples_print_what_they_show(started: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    failed = {}
    for path, code in docstring_examples.examples().items():
        if docstring_examples.needs_installation(code):
            try:
                docstring_examples.run(code, program(started), capsys)
            except Exception as error:
                failed[path] = error
    assert not failed
