"""One body, two modes: a test that takes ``serve_run`` runs in this process and on real replicas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from processes import free_port, new_site
from serving import ServeRun

import qserve
from qserve.handle import RayServeSyncHandle
from qserve.local.run import shutdown_local


@pytest.fixture
def run_here() -> Iterator[ServeRun]:
    """Serve a node in this process; all of it ends with the test."""

    def run(node: Any, **options: Any) -> RayServeSyncHandle:
        return qserve.run(node, local=True, **options)

    yield run
    shutdown_local()


@pytest.fixture(scope="session")
def broker_port() -> Iterator[int]:
    """A broker, workers and a gateway for the whole session; nothing of them may be left at its end."""
    port = free_port()
    with new_site() as site:
        with pytest.MonkeyPatch.context() as environment:
            for name, value in site.environment.items():
                environment.setenv(name, value)
            environment.delenv("QSERVE_BROKER_URL", raising=False)
            environment.delenv("REDIS_URL", raising=False)
            qserve.start(port=port)
        yield port
        qserve.shutdown()


@pytest.fixture
def run_on_broker(broker_port: int) -> Iterator[ServeRun]:
    """Serve a node by replicas of their own; applications beside the default one end with the test."""
    names = set()

    def run(node: Any, name: str = "default", **options: Any) -> RayServeSyncHandle:
        names.add(name)
        return qserve.run(node, port=broker_port, name=name, route_prefix=f"/{name}", **options)

    yield run
    for name in names - {"default"}:
        qserve.delete(name)


@pytest.fixture(params=["local", pytest.param("broker", marks=pytest.mark.slow)])
def mode(request: pytest.FixtureRequest) -> str:
    """Where the test's graphs run."""
    return str(request.param)


@pytest.fixture
def serve_run(mode: str, request: pytest.FixtureRequest) -> ServeRun:
    """Serve a node in the mode of this test, and answer its handle."""
    run: ServeRun = request.getfixturevalue("run_here" if mode == "local" else "run_on_broker")
    return run
