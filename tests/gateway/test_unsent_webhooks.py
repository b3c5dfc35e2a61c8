"""Webhooks that a Python program has asked for, at a gateway that has no secret to sign them with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import redis
from broker_fixtures import client, settings
from qserve_gateway import webhooks
from qserve_gateway.webhooks import Unsent

from qserve.base.keys import Keys
from qserve.base.settings import Settings

__all__ = ["client", "settings"]


def test_a_gateway_without_a_secret_says_once_that_nobody_sends_them_and_again_when_there_are_others(
    client: redis.Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(webhooks, "UNSENT_S", 0.0)
    keys = Keys(settings.namespace)
    plane: Any = SimpleNamespace(client=client, keys=keys)
    unsent = Unsent(plane)

    def said() -> int:
        unsent.look()
        return sum("no gateway sends them: set QSERVE_WEBHOOK_SECRET" in one.message for one in caplog.records)

    assert said() == 0
    client.zadd(keys.webhooks, {"due in the year 9999": 253_402_300_799_000})
    assert said() == 0
    client.zadd(keys.webhooks, {"due": 1})
    assert [said(), said()] == [1, 1]
    client.delete(keys.webhooks)
    assert said() == 1
    client.zadd(keys.webhooks, {"due": 1})
    assert said() == 2
    client.delete(keys.webhooks)
