"""A real broker, with a namespace of its own for each test."""

from __future__ import annotations

import pytest
import redis
from broker_fixtures import client, desk, keys, no_key_outlives_its_purpose, settings

from qserve.base.settings import Settings
from qserve.deploy.installation import Installation

__all__ = ["client", "desk", "keys", "no_key_outlives_its_purpose", "settings"]


@pytest.fixture
def installation(settings: Settings, client: redis.Redis) -> Installation:
    return Installation(settings, client)
