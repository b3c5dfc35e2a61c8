"""Remove stored values that nobody holds any more, and whose processes could not do it themselves."""

from __future__ import annotations

import os
import time
from typing import NoReturn

from qserve.base.log import get_logger
from qserve.base.process import set_title
from qserve.base.settings import Settings
from qserve.base.turns import Turns
from qserve.broker.connection import broker_errors, connect
from qserve.deploy.installation import Installation
from qserve.payloads.shm_folder import has_folders
from qserve.payloads.store import ValueStore
from qserve.payloads.tier import TierStats
from qserve.wire.claim import BROKER, MEMORY
from qserve.wire.replies import epoch, epoch_text, warn_once
from qserve_workers.supervisor.replica_process import flush_streams
from qserve_workers.supervisor.signals import begin_helper

log = get_logger(__name__)
SWEEP_S, SWEEP_FOLDERS_S = 5.0, 600.0
"""How often values in the memory of the host, and those in folders, are compared with those that the broker knows."""
_AT_ONCE = 1000


class ValueSweep:
    """Sweeps the values of one installation on this host, as every supervisor there does.

    Crash at any point: another sweep does the same.
    """

    def __init__(self, installation: Installation) -> None:
        self._known = KnownValues(installation)
        self._store = ValueStore(installation.settings, self._known.epoch)
        self._stores_apart = self._store.stores_in_memory and not installation.settings.broker_embedded
        self._token = ""
        self._due_at = self._fork_at = 0.0
        self._settings = installation.settings
        self.pids: set[int] = set()
        """The process that sweeps folders, if there are any."""

    def sweep_if_due(self) -> list[TierStats] | None:
        """Sweep if it is time, and return what there is; where no value is stored, this only looks for a folder."""
        now = time.monotonic()
        if now < self._due_at:
            return None
        self._due_at = now + SWEEP_S
        if folders_of(self._settings) and not self.pids and now >= self._fork_at:
            self._fork_at = now + SWEEP_FOLDERS_S
            self.pids = {fork_sweeper(self._settings)}
        if not has_folders():
            return []
        self._store.sweep(self._known.are_known, MEMORY)
        return [stats for stats in self._store.stats(MEMORY) if stats.values or stats.bytes]

    def note_end(self, pid: int) -> None:
        """Note that a process has ended: its number may be that of another one from now on."""
        self.pids.discard(pid)

    def memory(self) -> str:
        """Return the token of the memory in which replicas of this host store values, if other hosts must know it."""
        if not self._token and self._stores_apart:
            try:
                self._token = self._store.place.split("/")[1]
            except OSError as error:
                warn_once(f"large values cannot be stored in the memory of this host: {error}")
                self._stores_apart = False
        return self._token


class KnownValues:
    """Which stored values the broker knows."""

    def __init__(self, installation: Installation) -> None:
        self._client, self._keys = installation.client, installation.keys

    def epoch(self) -> str:
        return epoch_text(epoch(self._client.get(self._keys.epoch)))

    @broker_errors()
    def are_known(self, names: list[str]) -> list[bool]:
        """Return of each value by its name whether something holds it."""
        found: list[bool] = []
        for start in range(0, len(names), _AT_ONCE):
            pipe = self._client.pipeline(transaction=False)
            for name in names[start : start + _AT_ONCE]:
                pipe.exists(self._keys.value(name))
            found += map(bool, pipe.execute())
        return found


def folders_of(settings: Settings) -> list[str]:
    """Return the folders in which values are stored."""
    return [name for name in settings.payloads if name not in (MEMORY, BROKER)]


def fork_sweeper(settings: Settings) -> int:
    """Start the process that sweeps folders, and return its id: their libraries have threads, and may not be forked."""
    flush_streams()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _sweep_folders(settings, parent)
    return pid


def _sweep_folders(settings: Settings, parent: int) -> NoReturn:
    """Sweep now and then until the supervisor ends. Crash at any point: the next process does the same."""
    try:
        begin_helper(parent)
        set_title("qserve values")
        known = KnownValues(Installation(settings, connect(settings.named_broker)))
        store, turns = ValueStore(settings, known.epoch), Turns("looking for large values that nobody holds", log)
        while True:
            for folder in folders_of(settings):
                turns.attempt(folder, store.sweep, known.are_known, folder)
            time.sleep(SWEEP_FOLDERS_S)
    finally:
        os._exit(0)
