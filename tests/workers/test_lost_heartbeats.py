"""A heartbeat notices that the broker has forgotten it."""

from __future__ import annotations

import redis
from qserve_workers.process.heartbeat import Heartbeat

from qserve.base.keys import Keys
from qserve.base.settings import Settings


def test_a_heartbeat_whose_count_begins_anew_tells_that_the_broker_has_lost_its_data(
    client: redis.Redis, settings: Settings, keys: Keys
) -> None:
    losses: list[bytes] = []
    heart = Heartbeat(
        client, settings, "a", may_beat=lambda: True, on_loss=lambda: losses.append(client.get(keys.beat("a")))
    )
    heart.beat()
    heart.beat()
    assert losses == []

    client.delete(keys.beat("a"))
    heart.beat()
    heart.beat()

    assert losses == [b"1"]
