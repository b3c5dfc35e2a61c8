"""The items of an HTTP stream: short pieces, few of which are sent before the reader has room."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import closing
from typing import Any

import pytest
import redis
from desk import A, Desk
from processes import wait_until
from qserve_workers.replica.emitter import MOST_AHEAD, Emitter
from qserve_workers.replica.plane import LoopPlane

from qserve.base.keys import Keys
from qserve.base.settings import Settings
from qserve.broker import functions
from qserve.calls.client import ClientPlane
from qserve.calls.items import PIECE_BYTES, WINDOW, ItemRef
from qserve.calls.mailbox import ignore
from qserve.wire.claim import MEMORY, Claim, wrap
from qserve.wire.envelope import Answer, Header
from qserve.wire.moves import Start


def test_a_long_body_comes_in_pieces_when_its_reader_has_taken_the_head(
    client: redis.Redis, keys: Keys, settings: Settings
) -> None:
    body = b"x" * (1 << 20)
    header = Header(A, "app", None, int((time.time() + 60) * 1000), Answer.PLAIN, stream=True)

    async def produce() -> None:
        plane = LoopPlane(settings, lambda app: None)  # type: ignore[arg-type, return-value]
        await plane.open()
        emitter = Emitter(plane, header)
        for item in (b"head", body):
            await emitter.send(item)
        plane.close()

    with closing(ClientPlane(settings, counts_results=True)) as plane:
        Desk(client, keys).submit(A, [Start(keys.stream("app", "v", "one"), "0", [b"x"])], mailbox=plane.mailbox.name)
        ref: ItemRef[Any] = ItemRef(A, plane)
        plane.mailbox.add(ref, header.deadline_ms)
        plane.add_credit(A, 0)  # starts the thread that reads the mailbox
        producer = threading.Thread(target=asyncio.run, args=(produce(),))
        producer.start()
        wait_until(lambda: len(ref.items) == 1 + WINDOW // 4, description="the first items have come")

        plane.add_credit(A, 1)
        pieces = []
        while sum(map(len, pieces)) < len(b"head") + len(body):
            assert len(ref.items) <= WINDOW + 1
            pieces.append(ref.next(60) or b"")
        producer.join(60)

    assert pieces[0] == b"head"
    assert max(map(len, pieces)) == PIECE_BYTES
    assert b"".join(pieces[1:]) == body


STORED = wrap(Claim(MEMORY, f"host/{'0' * 32}/qserve-0-{'0' * 16}", "0" * 32, PIECE_BYTES, bytes(16)), b"")
SIZES = pytest.mark.parametrize(("size", "most"), [(1, MOST_AHEAD), (PIECE_BYTES, WINDOW)])


@SIZES
def test_an_item_waits_for_no_reply_while_the_reader_has_room(
    client: redis.Redis, keys: Keys, settings: Settings, size: int, most: int
) -> None:
    header = Header(A, "app", None, int((time.time() + 60) * 1000), Answer.VALUE, stream=True)
    Desk(client, keys).submit(A, [Start(keys.stream("app", "v", "one"), "0", [b"x"])])

    async def count_without_wait() -> int:
        plane = LoopPlane(settings, lambda app: None)  # type: ignore[arg-type, return-value]
        await plane.open()
        emitter = Emitter(plane, header)
        await emitter.send(b"first")  # its reply tells how far the reader is
        count = 0
        while True:
            sending = emitter.send(b"x" * size)
            try:
                sending.send(None)
            except StopIteration:
                count += 1
            else:  # it waits for a reply
                sending.close()
                break
        await plane.settled(60)
        plane.close()
        return count

    assert asyncio.run(count_without_wait()) == most - 2
    assert int(client.hget(keys.request(A), "sent") or 0) == most


def test_items_that_come_in_one_turn_of_the_loop_leave_by_one_command(
    client: redis.Redis, keys: Keys, settings: Settings
) -> None:
    header = Header(A, "app", None, int((time.time() + 60) * 1000), Answer.VALUE, stream=True)
    desk = Desk(client, keys)
    desk.submit(A, [Start(keys.stream("app", "v", "one"), "0", [b"x"])])

    async def send() -> None:
        plane = LoopPlane(settings, lambda app: None)  # type: ignore[arg-type, return-value]
        await plane.open()
        emitter = Emitter(plane, header)
        await emitter.send(b"first")
        client.config_resetstat()
        for _ in range(50):
            await emitter.send(b"x")
        await emitter.settled()
        plane.close()

    asyncio.run(send())

    commands: Any = client.info("commandstats")
    assert commands["cmdstat_fcall"]["calls"] == 1
    assert len(desk.mail()) == 51


@pytest.mark.slow
@pytest.mark.parametrize(
    ("item", "most"),
    [(b"x", MOST_AHEAD), (b"x" * PIECE_BYTES, WINDOW), (STORED, WINDOW)],
    ids=["short", "long", "stored"],
)
def test_there_are_never_more_items_than_the_window_that_the_reader_has_not_taken(
    client: redis.Redis, keys: Keys, settings: Settings, item: bytes, most: int
) -> None:
    header = Header(A, "app", None, int((time.time() + 60) * 1000), Answer.VALUE, stream=True)
    Desk(client, keys).submit(A, [Start(keys.stream("app", "v", "one"), "0", [b"x"])])

    async def most_not_taken() -> int:
        plane = LoopPlane(settings, lambda app: None)  # type: ignore[arg-type, return-value]
        await plane.open()
        emitter = Emitter(plane, header)
        sending = asyncio.create_task(emit_for_ever(emitter))
        found = 0
        for taken in range(3 * WINDOW):
            while (sent := int(client.hget(keys.request(A), "sent") or 0)) - taken < most:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.02)  # a few times as long as it takes to ask again, and to send one more
            found = max(found, int(client.hget(keys.request(A), "sent") or 0) - taken, sent - taken)
            plane.post(functions.take(keys.request(A), 1), ignore)
        sending.cancel()
        plane.close()
        return found

    async def emit_for_ever(emitter: Emitter) -> None:
        while True:
            await emitter.send(item)

    assert asyncio.run(most_not_taken()) == most
