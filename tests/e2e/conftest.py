"""A client of the gateway that ``started`` has started."""

from __future__ import annotations

import pytest
from http_client import Client
from processes import Started


@pytest.fixture
def client(started: Started) -> Client:
    return Client(started.url)
