"""Values in an object store that speaks S3, by real processes; `test_tiers.py` tests the tier itself with folders."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from processes import free_port, is_open, wait_until
from remote import remotes
from test_folder_under_gevent import pass_under_gevent

from qserve.base.settings import Settings
from qserve.exceptions import StoreUnavailable, ValueLost
from qserve.payloads import folder
from qserve.payloads.store import ValueStore
from qserve.wire.claim import BROKER, Claim, wrap

# found and not imported: that would take half a second in each process that only reads which tests there are
IS_THERE = all(find_spec(name) for name in ("moto", "s3fs"))
pytestmark = [pytest.mark.long, pytest.mark.skipif(not IS_THERE, reason="pip install 'qserve-celery[objects]'")]

URL = "s3://bucket/prefix"
DATA = os.urandom(20_000_000)
PUT = """
from qserve.payloads.folder import Folder
from qserve.wire.claim import apart, wrap
folder = Folder("s3://bucket/prefix", "namespace")
"""


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """The port of a server in a process of its own."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stderr=subprocess.DEVNULL)
    wait_until(lambda: is_open(port), description="the object store is there")
    yield port
    process.kill()
    process.wait()


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets what a user of s3fs sets, with an endpoint at some port."""

    def set_all(port: int) -> None:
        monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-key-of-the-user")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret-of-the-user")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        config = sys.modules.get("fsspec.config")
        if config is not None:  # it has read the environment
            monkeypatch.setitem(config.conf, "s3", {"endpoint_url": f"http://127.0.0.1:{port}"})

    return set_all


@pytest.fixture
def store(settings: Settings, root: Path) -> Iterator[Callable[..., ValueStore]]:
    made = []

    def make(*payloads: str) -> ValueStore:
        made.append(ValueStore(replace(settings, payloads=payloads), lambda: "epoch"))
        return made[-1]

    yield make
    for one in made:
        one.close()


def put(store: ValueStore) -> Claim:
    return store.put([(0, memoryview(DATA))], len(DATA))


def test_one_process_writes_and_another_reads_until_the_value_is_removed(
    server: int, reach: Callable[[int], None]
) -> None:
    reach(server)
    with remotes(2) as (one, other):
        for process in (one, other):
            process.run(PUT)
        claim = one.run(
            "data = b'x' * 20_000_000; result = wrap(folder.put([(0, memoryview(data))], 20_000_000), b'').hex()"
        )
        read = f"claim, _ = apart(bytes.fromhex({claim!r})); result = bytes(folder.get(claim)) == b'x' * 20_000_000"
        assert other.run(read)
        other.run("folder.forget([claim]); folder.close()")
        with pytest.raises(
            AssertionError, match="ValueLost: a value of 20000000 bytes is no longer in s3://bucket/prefix"
        ):
            one.run(read)


def test_what_the_broker_does_not_know_is_found_by_listing_and_removed(
    server: int, reach: Callable[[int], None], store: Callable[..., ValueStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    reach(server)
    values = store(f"{URL}/swept")
    wanted, unwanted = put(values), put(values)

    def know(names: list[str]) -> list[bool]:
        return [name == wanted.name for name in names]

    assert [one[1:3] for one in values.stats()] == [(2, 2 * len(DATA))]
    values.sweep(know)
    later = time.monotonic() + folder.UNKNOWN_FOR_S
    monkeypatch.setattr(folder.time, "monotonic", lambda: later)
    values.sweep(know)

    assert bytes(values.get(wanted)) == DATA
    with pytest.raises(ValueLost):
        values.get(unwanted)


def test_a_store_that_cannot_be_reached_is_an_error_in_bounded_time_or_the_next_one_takes_the_value(
    reach: Callable[[int], None], store: Callable[..., ValueStore]
) -> None:
    reach(free_port())
    began = time.monotonic()

    with pytest.raises(StoreUnavailable, match="a value of 20000000 bytes cannot be stored: s3://bucket/prefix can"):
        put(store(URL))
    assert time.monotonic() - began < 100  # s3fs tries for nine seconds
    assert put(store(URL, "broker")).store == BROKER


class Slow:
    """Lets bytes through to a port, some time after they have come, and keeps what was sent."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.sent = bytearray()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            there, back = self._listening.accept()[0], socket.create_connection(("127.0.0.1", self._port))
            threading.Thread(target=self._pass, args=(there, back, self.sent), daemon=True).start()
            threading.Thread(target=self._pass, args=(back, there, bytearray()), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, seen: bytearray) -> None:
        while data := source.recv(1 << 20):
            threading.Event().wait(0.05)
            seen += data
            target.sendall(data)
        target.close()


def test_a_slow_store_is_waited_for_and_sees_the_credentials_of_the_user_that_no_claim_has(
    server: int, reach: Callable[[int], None], store: Callable[..., ValueStore]
) -> None:
    slow = Slow(server)
    reach(slow.port)
    values = store(URL)

    claim = put(values)

    assert bytes(values.get(claim)) == DATA
    assert b"Credential=the-key-of-the-user/" in slow.sent
    assert b"of-the-user" not in wrap(claim, b"")


def test_greenlets_pass_values_through_the_store_and_others_run_meanwhile(
    server: int, reach: Callable[[int], None]
) -> None:
    reach(server)

    pass_under_gevent(URL)
