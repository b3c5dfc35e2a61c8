"""What the replicas of each worker have counted, kept in the broker for the gateways."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qserve.base.clock import clock
from qserve.base.keys import TOTALS_TTL_MS, Keys
from qserve.broker.connection import Client, broker_errors, without_strangers
from qserve.wire.replies import each, text
from qserve.wire.sealing import Seal
from qserve.wire.totals import Published, Snapshot

STALE_S = 30.0
"""How long what a worker has said holds."""
LIMIT = 4 << 20
"""The most bytes that one worker keeps in the broker."""


@broker_errors()
def publish(client: Client, keys: Keys, seal: Seal, worker: str, snapshot: Snapshot, has_page: bool) -> bool:
    """Keep what the replicas of a worker have counted; return False for what is too long.

    Crash before the command: the gateways show the former numbers. Crash after: the new ones, until they are stale.
    """
    key = keys.totals
    data = seal.seal(_place(worker), Published(clock.stamp_ms() + 1000 * STALE_S, has_page, snapshot).encode())
    if len(data) > LIMIT:
        return False

    def store() -> None:
        client.pipeline(transaction=False).hset(key, worker, data).pexpire(key, TOTALS_TTL_MS).execute()

    without_strangers(client, store, key)
    return True


@broker_errors()
def withdraw(client: Client, keys: Keys, seal: Seal, worker: str) -> None:
    """Remove what a worker has said that ends now, and what was said by those that are gone."""
    key = keys.totals
    found: Any = without_strangers(client, lambda: client.hgetall(key), key)
    stale = [name for name, said in _read(found, seal) if name == worker or said.until_ms < clock.judge_ms()]
    if stale:
        client.hdel(key, *stale)


@broker_errors()
def worker_totals(client: Client, keys: Keys, seal: Seal) -> dict[str, Published]:
    """Return what the replicas of each worker have counted, by the worker's ID."""
    found: Any = client.hgetall(keys.totals)
    return {name: said for name, said in _read(found, seal) if said.until_ms >= clock.judge_ms()}


def _read(found: dict[bytes, bytes], seal: Seal) -> Iterator[tuple[str, Published]]:
    def read(item: tuple[bytes, bytes]) -> tuple[str, Published]:
        worker = text(item[0], "the name of a worker")
        return worker, Published.decode(seal.open(_place(worker), item[1]))

    return each(found.items(), read)


def _place(worker: str) -> bytes:
    return f"totals|{worker}".encode()
