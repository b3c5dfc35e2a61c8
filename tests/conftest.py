"""What all tests share: places for real processes, checked for leftovers when a test is over."""

from __future__ import annotations

import compileall
import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Site, Started, free_port, is_open, new_site
from shared_state import shared_state

import qserve
from qserve.base import import_path
from qserve.broker.connection import connect, load_functions
from qserve.machine.embedded_broker import EmbeddedBroker

ROOT = Path(__file__).parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Compile the packages and the tests once: where Python may not write bytecode, every process would compile them.

    And take Ctrl-C, which a suite in the background of a shell ignores, and with it all that it starts.
    """
    sys.dont_write_bytecode = False
    gc.disable()  # until all tests are collected, because nothing becomes garbage before
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from hypothesis import HealthCheck, settings  # only now, since pytest compiles it too

    # how long an example takes says more of what else the machine does than of our code
    settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("shared machine")
    if not hasattr(config, "workerinput"):
        for name in ("qserve", "workers", "gateway"):
            compileall.compile_dir(ROOT / name, quiet=2)


def pytest_xdist_auto_num_workers() -> int:
    """One process more than cores for `make fast`, because some tests wait for others."""
    return (os.cpu_count() or 1) + 1


class InTurn(pytest.Dir):
    """A folder whose files each process of a run reads from another one on, so that it compiles what others have not.

    Pytest compiles each file of tests when it is read first, and that takes twice as long as reading all of them.
    """

    def collect(self) -> list[pytest.Item | pytest.Collector]:
        found = [*super().collect()]
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        first = len(found) * worker // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        return found[first:] + found[:first]


def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector:
    """Read the files of a folder beginning with a different one in each process."""
    return InTurn.from_parent(parent, path=path)


@pytest.hookimpl(wrapper=True)  # marks before the option -m is applied, and sorts what others have shuffled
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Mark tests that start processes as slow, except those that check in `make fast` that the whole works.

    And begin with the folders whose tests wait for processes: the others are short, and end at about the same moment.
    """
    items.sort(key=lambda item: item.path)  # all processes must have the same order
    for item in items:
        starts_processes = isinstance(item, pytest.Function) and {"site", "started"} & {*item.fixturenames}
        if starts_processes and item.get_closest_marker("smoke") is None:
            item.add_marker(pytest.mark.slow)
    yield
    first = [ROOT / "tests" / "faults", ROOT / "tests" / "e2e"]
    items.sort(key=lambda item: first.index(item.path.parent) if item.path.parent in first else len(first))


def pytest_collection_finish() -> None:
    """Leave what is here now out of garbage collections, which would go through all of it each time."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def site() -> Iterator[Site]:
    """A place for this test's processes; none of them, nor a broker's folder, may outlive it."""
    with new_site() as place:
        yield place


@pytest.fixture(scope="session")
def broker() -> Iterator[EmbeddedBroker]:
    """A real broker for the session, with the function library."""
    server = EmbeddedBroker()
    server.wait_ready()
    with connect(server.url) as client:
        load_functions(client)
    yield server
    server.stop()


@pytest.fixture(scope="session", autouse=True)
def folder_of_temporary_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Make the folder of all ``tmp_path`` now: the first test that has one may have changed where pytest makes it."""
    tmp_path_factory.getbasetemp()


@pytest.fixture(autouse=True)
def leaves_its_process_as_it_was() -> Iterator[None]:
    """Fail a test after which the process handles signals, tells the time or finds files in another way than before."""
    before, folders = shared_state(), import_path.user_folders()
    yield
    import_path._folders[:] = folders  # commands that are carried out here add to them
    after = shared_state()
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    assert not changed, f"the tests that follow would find these as this test has left them: {', '.join(changed)}"


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Switch the garbage collector off."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module")
def started() -> Iterator[Started]:
    """One broker, supervisor and gateway for all tests of a module; each test runs its own applications."""
    port = free_port()
    with new_site() as site, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("QSERVE_", "REDIS_URL"))]:
            patch.delenv(name)
        log = site.folder / "log"
        try:
            _start(port, site, log)
            yield Started(f"http://127.0.0.1:{port}", site, log)
        finally:
            qserve.shutdown()
        site.wait_empty()
        assert not is_open(port)


def _start(port: int, site: Site, log: Path) -> None:
    """Start with standard error leading to a file: the processes keep it, this one gets its own back."""
    own = os.dup(2)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in site.environment.items():
            patch.setenv(name, value)
        patch.setattr(tempfile, "tempdir", str(site.folder))
        try:
            with log.open("wb") as file:
                os.dup2(file.fileno(), 2)
            qserve.start(port=port)
        finally:
            os.dup2(own, 2)
            os.close(own)
