"""Large values in the memory of the host end with the embedded broker whose requests they belong to."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from processes import free_port

from qserve.base.settings import Settings
from qserve.machine.local_cluster import LocalCluster
from qserve.payloads.shm_folder import SHM
from qserve.payloads.store import ValueStore
from qserve.wire.claim import MEMORY


def store_value(settings: Settings) -> Path:
    """Store a value as a process that is killed afterwards, and return the folder that it is in."""
    name = os.urandom(8).hex()
    store = ValueStore(settings, lambda: name)
    claim = store.put([(0, memoryview(b"x"))], 1)
    store.close()
    assert claim.store == MEMORY
    return SHM / claim.place.rpartition("/")[2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm is Linux's")
def test_values_of_a_run_are_removed_with_it_and_those_of_a_killed_one_at_the_next_start() -> None:
    killed = Settings(broker_url="unix:///a/folder/that/is/gone/broker.sock", broker_embedded=True)
    before, elsewhere = store_value(killed), store_value(replace(killed, broker_embedded=False, payloads=("memory",)))
    cluster = LocalCluster(Settings(), port=free_port())
    try:
        cluster.start()
        assert not before.exists()
        during = store_value(cluster.settings)
        store = ValueStore(cluster.settings, lambda: "of a program that still runs")
        by_program = store.put([(0, memoryview(b"x"))], 1)
    finally:
        cluster.stop()

    assert not during.exists()
    assert not (SHM / by_program.place.rpartition("/")[2]).exists()
    assert elsewhere.exists()  # its broker may still run
    shutil.rmtree(elsewhere)
