"""What the connection of `qserve tasks` to Celery's broker does that kombu's own does not."""

from __future__ import annotations

import logging

import kombu.transport
import pytest
from kombu import Connection
from qserve_workers.tasks.transport import Transport

from qserve.machine.embedded_broker import EmbeddedBroker


def test_an_acknowledgement_over_a_connection_that_was_closed_meanwhile_ends_nothing(
    broker: EmbeddedBroker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kombu.transport._transport_cache, "redis", Transport)
    with Connection(broker.url.replace("unix://", "redis+socket://")) as connection:
        queue = connection.SimpleQueue("acknowledged-late")
        queue.put("once")
        message = queue.get(timeout=60)
        connection.collect()  # as Celery does when the broker is lost
        message.channel._disconnect_pools()  # it opens others where it has something to give back

        message.ack_log_error(logging.getLogger("celery"), connection.connection_errors)  # as Celery calls it

    assert "this channel is closed" in caplog.text
