"""A real broker for the tests that ask for one, and a folder in memory of each test's own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker_fixtures import client, keys, no_key_outlives_its_purpose, settings

from qserve.payloads import store
from qserve.payloads.shm_folder import SHM

__all__ = ["client", "keys", "no_key_outlives_its_purpose", "settings"]


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for files in memory, to this test and its processes."""
    path = SHM / f"test-{os.urandom(8).hex()}"
    path.mkdir()
    monkeypatch.setattr(store, "SHM", path)
    yield path
    shutil.rmtree(path)
