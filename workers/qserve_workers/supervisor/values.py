"""Remove stored values that nobody holds any more, and whose processes could not do it themselves."""

from __future__ import annotations

import time

from qserve.deploy.installation import Installation
from qserve.payloads.shm_folder import has_folders
from qserve.payloads.store import ValueStore
from qserve.payloads.tier import TierStats
from qserve.wire.claim import MEMORY
from qserve.wire.replies import epoch, warn_once

SWEEP_S = 5.0
"""How often the values in the memory of the host are compared with those that the broker knows; a value goes when it
was unknown twice."""
_AT_ONCE = 1000


class ValueSweep:
    """Sweeps the values of one installation on this host, as every supervisor there does.

    Crash at any point: another sweep does the same.
    """

    def __init__(self, installation: Installation) -> None:
        self._client, self._keys = installation.client, installation.keys
        self._store = ValueStore(installation.settings, self._epoch)
        self._stores_apart = self._store.stores_in_memory and not installation.settings.broker_embedded
        self._token = ""
        self._due_at = 0.0

    def sweep_if_due(self) -> list[TierStats] | None:
        """Sweep if it is time, and return what there is; where no value is stored, this only looks for a folder."""
        now = time.monotonic()
        if now < self._due_at:
            return None
        self._due_at = now + SWEEP_S
        if not has_folders():
            return []
        self._store.sweep(self._are_known, MEMORY)
        return [stats for stats in self._store.stats(MEMORY) if stats.values or stats.bytes]

    def memory(self) -> str:
        """Return the token of the memory in which replicas of this host store values, if other hosts must know it."""
        if not self._token and self._stores_apart:
            try:
                self._token = self._store.place.split("/")[1]
            except OSError as error:
                warn_once(f"large values cannot be stored in the memory of this host: {error}")
                self._stores_apart = False
        return self._token

    def _epoch(self) -> str:
        return str(epoch(self._client.get(self._keys.epoch)))

    def _are_known(self, names: list[str]) -> list[bool]:
        found: list[bool] = []
        for start in range(0, len(names), _AT_ONCE):
            pipe = self._client.pipeline(transaction=False)
            for name in names[start : start + _AT_ONCE]:
                pipe.exists(self._keys.value(name))
            found += map(bool, pipe.execute())
        return found
