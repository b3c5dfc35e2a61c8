"""Items of a sync generator are handed over several at a time when they come fast, and at once when they do not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

from qserve.engine.streaming import send_stream
from qserve.wire.envelope import Answer, Header

HEADER = Header("0" * 32, "app", None, 0, Answer.VALUE, stream=True)


class Sink:
    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.sent: list[bytes] = []
        self.has_one = threading.Event()

    async def send(self, payload: bytes) -> None:
        self.sent.append(payload)
        self.has_one.set()

    def flush(self) -> None:
        pass

    async def settled(self) -> None:
        pass

    def result(self) -> bytes:
        return b""


def stream(generator: Iterator[bytes], room: int = 0) -> tuple[list[bytes], int]:
    """Send what a generator yields; return it, and how often the thread of sync code was asked."""
    sink, asked = Sink(room), 0

    async def send() -> None:
        loop = asyncio.get_running_loop()

        def in_thread(call: Callable[[], Any]) -> asyncio.Future[Any]:
            nonlocal asked
            asked += 1
            return loop.run_in_executor(None, call)

        await send_stream(sink, generator, HEADER, lambda item: item, in_thread)

    sinks.append(sink)
    asyncio.run(send())
    return sink.sent, asked


sinks: list[Sink] = []


def test_fast_items_are_handed_over_several_at_a_time() -> None:
    wanted = [b"%d" % number for number in range(300)]

    sent, asked = stream(iter_of(wanted))

    assert sent == wanted
    assert asked < 200  # one by one it would be 302; a busy machine cuts some slices short


def test_a_reader_with_room_gets_many_at_a_time() -> None:
    wanted = [b"%d" % number for number in range(300)]

    sent, asked = stream(iter_of(wanted), room=100)

    assert sent == wanted
    assert asked < 50  # three at a time it would be a hundred


def test_an_item_is_sent_before_the_next_one_is_made() -> None:
    def items() -> Iterator[bytes]:
        yield b"a"
        assert sinks[-1].has_one.wait(60)
        yield b"b"

    assert stream(items())[0] == [b"a", b"b"]


def iter_of(items: list[bytes]) -> Iterator[bytes]:
    yield from items
