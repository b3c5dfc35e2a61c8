"""Where an installation has large values in the memory of this host; other tests have theirs beside it."""

from __future__ import annotations

from pathlib import Path

from qserve.base.settings import Settings
from qserve.payloads.shm_folder import SHM
from qserve.payloads.store import ValueStore


def memory_of(url: str) -> Path:
    """Return the folder of the installation at a broker, at which it has begun."""
    store = ValueStore(Settings(broker_url=url, payloads=("memory",)), lambda: "")
    try:
        return SHM / store.place.rpartition("/")[2]
    finally:
        store.close()
