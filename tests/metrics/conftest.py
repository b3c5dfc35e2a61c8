"""A process that counts: user code and qserve itself count with ``here``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qserve.metrics import recorder, user
from qserve.metrics.names import Names
from qserve.metrics.recorder import Recorder


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """That of a replica; each test makes its metrics anew."""
    monkeypatch.setattr(user, "_names", Names())
    monkeypatch.setattr(user, "_made", set())
    monkeypatch.setattr(recorder, "_full", set())
    counting = Recorder({"application": "shop", "deployment": "Model", "replica": "Model-1"})
    recorder.install(counting)
    yield counting
    recorder.install(None)
