"""A namespace of its own for each test of the real broker, and no key left without a life."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import redis
from desk import Desk

from qserve.base.keys import Keys
from qserve.base.settings import Settings
from qserve.broker.connection import connect
from qserve.machine.embedded_broker import EmbeddedBroker


@pytest.fixture
def client(broker: EmbeddedBroker) -> Iterator[redis.Redis]:
    with connect(broker.url) as connection:
        yield connection


@pytest.fixture
def settings(broker: EmbeddedBroker) -> Settings:
    return Settings(broker_url=broker.url, namespace=os.urandom(4).hex(), secret_key=b"the-key-of-this-test")


@pytest.fixture
def keys(settings: Settings) -> Keys:
    return Keys(settings.namespace)


@pytest.fixture
def desk(client: redis.Redis, keys: Keys) -> Desk:
    return Desk(client, keys)


@pytest.fixture(autouse=True)
def no_key_outlives_its_purpose(client: redis.Redis, keys: Keys) -> Iterator[None]:
    """Fail a test that leaves a key without a time to live; streams and the registry live with their apps."""
    yield
    living = (":q:", ":apps", ":changes", ":a:", ":code:", ":epoch", ":hosts", ":plan", ":drains", ":s:", ":w:")
    found = list(client.scan_iter(keys._name("*").replace("[", "\\["), count=1000))
    for key in found:
        text = key.decode()
        if not any(part in text for part in living):
            assert client.pttl(key) != -1, f"{text} has no time to live"  # -2: it has just expired
    if found:
        client.unlink(*found)  # so that the next test finds as few as this one
