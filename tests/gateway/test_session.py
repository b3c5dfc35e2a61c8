"""What a gateway passes on of a WebSocket, with a replica that answers when it is told to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from processes import wait_until
from qserve_gateway.response.session import Session
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, Request

from qserve.base.promise import Promise
from qserve.base.settings import Settings
from qserve.calls.items import WINDOW
from qserve.wire.websocket import PART_BYTES, part_in

LONG = 3 * WINDOW * PART_BYTES


class Told:
    """A plane that keeps what is told, and the promises of the replies."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.bytes = 0
        self._replies: list[Promise[Any]] = []

    def tell(self, request_id: str, number: int, payload: bytes) -> Promise[Any]:
        self.numbers.append(number)
        if number >= 0:
            self.bytes += len(part_in(payload, number).data)
        self._replies.append(Promise())
        return self._replies[-1]

    def reply(self, untaken: int) -> None:
        """Reply to all, with how many parts the application has not taken."""
        for promise in list(self._replies):
            promise.set((untaken, 0))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def client(told: Told) -> Iterator[Any]:
    """Sends a message of so many bytes to a session that runs in a thread."""
    ours, theirs = socket.socketpair()
    server, protocol = WSConnection(ConnectionType.SERVER), WSConnection(ConnectionType.CLIENT)
    server.receive_data(protocol.send(Request(host="a", target="/")))
    [*server.events()]
    ref: Any = SimpleNamespace(request_id="a" * 32, done=Promise(), next=partial(gevent.sleep, 3600), received=0)
    plane: Any = told
    session = Session(ref, plane, Settings(), theirs, server, "a")
    thread = threading.Thread(target=session.run, args=(None, []))
    thread.start()
    protocol.receive_data(ours.recv(1 << 16))
    assert [type(event) for event in protocol.events()] == [AcceptConnection]

    def send(size: int) -> None:
        data = protocol.send(BytesMessage(bytes(size)))
        threading.Thread(target=ours.sendall, args=(data,)).start()  # it waits for the session

    yield send
    ours.shutdown(socket.SHUT_WR)
    wait_until(lambda: told.reply(0) or not thread.is_alive(), description="the session has ended")
    ours.close()
    theirs.close()


def test_parts_of_a_message_are_told_without_waiting_until_there_may_be_no_room(told: Told, client: Any) -> None:
    client(LONG)
    wait_until(lambda: len(told.numbers) == WINDOW, description="as many parts are told as there is room for")
    assert told.numbers == [*range(WINDOW)], "although nothing was replied"

    wait_until(lambda: told.reply(1) or told.bytes == LONG, description="all of it is told")
    assert told.numbers == [*range(len(told.numbers))]


def test_a_replica_without_room_is_asked_until_it_has_some(told: Told, client: Any) -> None:
    client(LONG)
    wait_until(lambda: len(told.numbers) == WINDOW, description="as many parts are told as there is room for")

    wait_until(lambda: told.reply(WINDOW) or told.numbers.count(-1) > 2, description="it is asked for room")
    assert [number for number in told.numbers if number >= 0] == [*range(WINDOW)]

    wait_until(lambda: told.reply(0) or told.bytes == LONG, description="the rest is told")
