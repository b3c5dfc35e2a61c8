"""Serve an application from the program that measures it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import qserve
from harness.processes import free_port, wait_until
from qserve.calls.client import ClientPlane
from qserve.calls.ref import current


@contextlib.contextmanager
def serving(graph: Any) -> Iterator[tuple[Any, int]]:
    """Start a broker, workers and a gateway for a graph; yield its handle and its port, and end all of it."""
    os.environ.setdefault("QSERVE_LOG_LEVEL", "error")
    port = free_port()
    try:
        yield qserve.run(graph, port=port), port
    finally:
        qserve.shutdown()


def broker() -> tuple[str, bytes | None]:
    """Return the address of the embedded broker, and its secret key."""
    plane = current.plane()
    assert isinstance(plane, ClientPlane) and plane.settings.broker_url is not None
    return plane.settings.broker_url, plane.settings.secret_key


def warm(ask: Any) -> None:
    """Ask until the answer is right."""
    wait_until(ask, "the application answers", 60.0)
