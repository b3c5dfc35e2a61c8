"""The examples in docstrings that call what runs do what their comments say, in a program that has started it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import docstring_examples
import pytest
from docstring_examples import EXAMPLES
from processes import free_port

import qserve
from qserve import api

pytestmark = pytest.mark.slow
CALLING = {path: code for path, code in EXAMPLES.items() if docstring_examples.needs_installation(code)}


@pytest.fixture(scope="module")
def started() -> Iterator[dict[str, Any]]:
    """The names of the program that the reference shows; where it starts, a port is free."""
    port, api.DEFAULT_PORT = api.DEFAULT_PORT, free_port()
    yield {"__name__": "__main__"}
    qserve.shutdown()
    api.DEFAULT_PORT = port


@pytest.fixture
def program(started: dict[str, Any]) -> dict[str, Any]:
    """The same once it has started an installation, which some of the examples end."""
    if not qserve.is_initialized():
        exec(docstring_examples.PRELUDE, started)
    return dict(started)


@pytest.mark.parametrize("path", CALLING)
def test_an_example_prints_what_it_shows(
    path: str, program: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    docstring_examples.run(CALLING[path], program, capsys)
