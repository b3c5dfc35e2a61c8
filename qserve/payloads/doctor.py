"""Check the stores of large values: is the memory of the host large enough, do the workers share it, what is there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from qserve.broker.doctor import Finding
from qserve.payloads.shm_folder import SHM
from qserve.payloads.store import ValueStore
from qserve.payloads.tier import TierStats
from qserve.wire.fleet import HostRecord

_SMALL_BYTES = 256 << 20
"""Containers have 64 MB of this memory unless they are given more."""


@dataclass(frozen=True)
class StoreFacts:
    """What is known of the stores.

    Parameters:
      shm_bytes, shm_free: The size of ``/dev/shm`` and how much of it is free, if values are stored there; 0 otherwise.
      memories: The memories in which workers store values, by their tokens, each with the workers that use it.
      stats: What each store holds, as this process sees it.
    """

    shm_bytes: int = 0
    shm_free: int = 0
    memories: tuple[tuple[str, ...], ...] = ()
    stats: tuple[TierStats, ...] = ()


def read_facts(store: ValueStore, workers: Collection[HostRecord]) -> StoreFacts:
    """Read what can be read from this host; a store that cannot be reached raises as its tier does."""
    by_memory: dict[str, list[str]] = {}
    for worker in workers:
        if worker.values_in:
            by_memory.setdefault(worker.values_in, []).append(worker.worker)
    size = free = 0
    if store.stores_in_memory:
        with contextlib.suppress(OSError):
            found = os.statvfs(SHM)
            size, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    return StoreFacts(size, free, tuple(tuple(sorted(names)) for names in by_memory.values()), tuple(store.stats()))


def examine(facts: StoreFacts) -> Sequence[Finding]:
    """Return the result of every check that the facts allow."""
    return [*_memory(facts), *_sharing(facts), *map(_held, facts.stats)]


def _memory(facts: StoreFacts) -> Iterator[Finding]:
    if facts.shm_bytes:
        what = f"/dev/shm has {_size(facts.shm_bytes)}, of which {_size(facts.shm_free)} are free"
        if facts.shm_bytes < _SMALL_BYTES:
            remedy = "give the container more (docker run --shm-size=2g); what does not fit goes to the next store"
            yield Finding("warning", what, remedy)
        else:
            yield Finding("ok", what)


def _sharing(facts: StoreFacts) -> Iterator[Finding]:
    if len(facts.memories) > 1:
        groups = " | ".join(", ".join(names) for names in facts.memories)
        what = f"these workers store values in {len(facts.memories)} memories that the others cannot read: {groups}"
        remedy = "set QSERVE_PAYLOADS=broker, or a folder that all reach, or share /dev/shm (docker run --ipc)"
        yield Finding("error", what, remedy)
    elif facts.memories:
        yield Finding("ok", f"all {len(facts.memories[0])} workers share one memory for large values")


def _held(stats: TierStats) -> Finding:
    oldest = f", the oldest stored {stats.oldest_s:.0f} s ago" if stats.values else ""
    return Finding("ok", f"large values in {stats.tier}: {stats.values}, of {_size(stats.bytes)}{oldest}")


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
