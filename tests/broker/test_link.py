"""A connection that ends in the moment of a reply: a caller that waits for the reply learns of the end as well."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from qserve_workers.replica.plane import LoopPlane

from qserve.base.clock import clock
from qserve.base.settings import Settings
from qserve.broker.address import Address
from qserve.broker.link import Link, tls_of
from qserve.calls.ref import Ref
from qserve.exceptions import BrokerUnavailable
from qserve.wire.application import ApplicationRecord
from qserve.wire.outcome import State

NOTHING = b"$-1\r\n"


class Far(asyncio.Transport):
    """A broker that answers so many commands, each with nothing, and ends the connection with its last answer."""

    def __init__(self, answers: int) -> None:
        super().__init__()
        self.link = Link()
        self.link.connection_made(self)
        self._answers = answers

    def write(self, data: bytes | bytearray | memoryview) -> None:
        asyncio.get_running_loop().call_soon(self._answer)

    def _answer(self) -> None:
        self._answers -= 1
        self.link.data_received(NOTHING)
        if not self._answers:
            self.link.connection_lost(None)

    def close(self) -> None:
        pass


def plane_of(brokers: list[Far], monkeypatch: pytest.MonkeyPatch) -> LoopPlane:
    """A plane whose connections lead to these brokers, one after the other."""

    async def open_next(url: str) -> Link:
        return brokers.pop(0).link

    monkeypatch.setattr(Link, "open", open_next)
    applications: dict[str, ApplicationRecord] = {}
    settings = Settings(broker_url="redis://127.0.0.1:1/0")
    return LoopPlane(settings, applications.__getitem__)


def on_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test; one that waits for what never comes fails."""
    asyncio.run(asyncio.wait_for(test(), 5))


def test_a_link_that_was_lost_with_its_last_reply_says_so_at_once() -> None:
    async def test() -> None:
        link = Far(answers=1).link
        assert await asyncio.wait_for(link.call(("GET", "epoch")), 1) is None
        with pytest.raises(BrokerUnavailable):
            link.when_lost(lambda waiting: None)
        with pytest.raises(BrokerUnavailable):
            await link.call(("PING",))

    on_loop(test)


def test_a_replica_whose_new_connection_ended_while_it_was_opened_opens_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        first, second, third = Far(answers=2), Far(answers=1), Far(answers=100)
        plane = plane_of([first, second, third], monkeypatch)
        await plane.open()
        answered = asyncio.Event()
        plane.post(("PING",), lambda reply: None)  # the last that the first one answers
        await asyncio.sleep(0)
        plane.post(("PING",), lambda reply: answered.set())
        await answered.wait()

    on_loop(test)


def test_a_replica_whose_mailbox_connection_ended_reads_on_over_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "is_due", lambda: False)

    async def test() -> None:
        brokers = [Far(answers=2), Far(answers=100)]
        plane = plane_of(brokers, monkeypatch)
        late = Ref("a" * 32, plane)
        plane._expect(late, deadline_ms=1)
        while brokers:
            await asyncio.sleep(0.01)
        await late.done
        plane.close()
        assert late.outcome().state == State.EXPIRED

    on_loop(test)


@pytest.mark.parametrize(
    ("parameters", "verified", "named"),
    [
        ("", ssl.CERT_REQUIRED, True),
        ("?ssl_check_hostname=False", ssl.CERT_REQUIRED, False),
        ("?ssl_cert_reqs=none", ssl.CERT_NONE, False),
    ],
)
def test_a_link_obeys_the_tls_parameters_of_its_address(parameters: str, verified: ssl.VerifyMode, named: bool) -> None:
    context = tls_of(Address.of(f"rediss://broker/0{parameters}").options)

    assert context is not None
    assert (context.verify_mode, context.check_hostname) == (verified, named)


def test_a_link_presents_the_certificate_that_its_address_names() -> None:
    with pytest.raises(FileNotFoundError):
        tls_of(Address.of("rediss://broker/0?ssl_certfile=/no/such/file.pem").options)


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="this kernel has other names")
def test_a_connection_that_waits_for_long_asks_whether_its_peer_is_still_there() -> None:
    async def test() -> None:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1")
        transport, _ = await asyncio.get_running_loop().create_connection(Link, *server.sockets[0].getsockname())
        sock = transport.get_extra_info("socket")
        names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
        found = [sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names]
        is_on = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        transport.abort()
        server.close()
        await server.wait_closed()
        assert is_on and found == [5, 1, 3]

    on_loop(test)
