"""What Celery's side of a replica promises without one."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis
from celery import Celery
from celery.exceptions import ImproperlyConfigured
from celery.result import allow_join_result
from celery.worker import WorkController
from celery.worker.control import Panel
from kombu import Connection
from processes import wait_until
from qserve_workers.celery import transport
from qserve_workers.celery.app import make_celery
from qserve_workers.celery.worker import REFUSALS

from qserve.base.clock import Clock
from qserve.base.keys import CONTROL_TTL_MS, Keys
from qserve.base.settings import Settings
from qserve.broker import connection as broker_connection

HOUR_S = 3600.0


@pytest.fixture
def app(settings: Settings) -> Iterator[Celery]:
    made = make_celery(settings)
    yield made
    made.pool.force_close_all()


def opened(client: redis.Redis) -> int:
    return int(client.info("stats")["total_connections_received"])


def test_a_call_that_is_sent_as_a_task_is_refused_with_what_to_use(app: Celery) -> None:
    with pytest.raises(NotImplementedError, match=r"qserve.get_deployment_handle\(deployment\)"):
        app.tasks["qserve.call"].apply_async()
    with pytest.raises(NotImplementedError, match="not Celery messages"):
        app.tasks["qserve.call"]()


def test_a_plain_celery_worker_is_refused_with_what_to_start(app: Celery) -> None:
    with allow_join_result(), pytest.raises(ImproperlyConfigured, match="qserve worker"):
        WorkController(app=app, pool="solo", concurrency=1)  # after which this process counts as a worker of Celery


def test_polling_keeps_the_connection(app: Celery, client: redis.Redis) -> None:
    with app.connection_for_read() as connection:
        channel = connection.channel()
        app.control.mailbox.Node("worker", channel=channel).listen(callback=lambda body, message: None)
        before = opened(client)
        for _ in range(5):
            with contextlib.suppress(socket.timeout):
                connection.drain_events(timeout=0.01)
        assert opened(client) == before


def test_commands_and_replies_reach_their_ends_over_the_broker(app: Celery) -> None:
    ready, asked = threading.Event(), threading.Event()

    def serve(connection: Connection) -> None:
        node = app.control.mailbox.Node("one@host", channel=connection.channel())
        node.handlers["ping"] = lambda state: {"ok": "pong"}
        node.listen(callback=node.handle_message)
        ready.set()
        while not asked.is_set():
            with contextlib.suppress(socket.timeout):
                connection.drain_events(timeout=0.05)

    with app.connection_for_read() as connection:
        thread = threading.Thread(target=serve, args=(connection,))
        thread.start()
        assert ready.wait(60)
        try:
            found = app.control.inspect(timeout=60.0, limit=1).ping()
        finally:
            asked.set()
            thread.join(10)
    assert found == {"one@host": {"ok": "pong"}}


@pytest.mark.parametrize("key", [None, b"of-somebody-who-made-it-up"])
def test_what_is_not_sealed_with_the_key_is_no_command_and_no_reply(
    app: Celery, settings: Settings, client: redis.Redis, keys: Keys, key: bytes | None
) -> None:
    stranger = make_celery(replace(settings, secret_key=key))
    stranger.control.broadcast("ping")
    stranger.pool.force_close_all()
    stream = keys.fanout("celery.pidbox")
    client.xadd(stream, {"m": b"no message"})
    client.xadd(stream, {"other": b""})
    handled: list[object] = []

    with app.connection_for_read() as connection:
        node = app.control.mailbox.Node("one@host", channel=connection.channel())
        for queue in node.channel.connection.broadcasts:
            node.channel.connection.broadcasts[queue] = (stream, "0-0")
        node.listen(callback=lambda body, message: handled.append(body["method"]))
        for queue in node.channel.connection.broadcasts:
            node.channel.connection.broadcasts[queue] = (stream, "0-0")
        app.control.broadcast("clock")
        wait_until(lambda: drained(connection) or handled, description="the genuine command arrives")
    assert handled == ["clock"]


def test_a_command_that_is_sent_again_after_a_minute_is_ignored(
    app: Celery, client: redis.Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = keys.fanout("celery.pidbox")
    app.control.broadcast("shutdown")
    ((_, fields),) = client.xrange(stream)
    handled: list[object] = []

    with app.connection_for_read() as connection:
        node = app.control.mailbox.Node("one@host", channel=connection.channel())
        node.listen(callback=lambda body, message: handled.append(body["method"]))
        monkeypatch.setattr(transport, "clock", Clock(wall=lambda: time.time() + CONTROL_TTL_MS / 1000 + 1))
        client.xadd(stream, fields)
        app.control.broadcast("clock")
        wait_until(lambda: drained(connection) or handled, description="the genuine command arrives")
    assert handled == ["clock"]


def clock_that_saw(*ahead_s: float) -> Clock:
    made = Clock()
    for ahead in ahead_s:
        made.observe(time.time() + ahead, time.monotonic())
    return made


@pytest.mark.parametrize(
    ("sender", "receiver"),
    [((-HOUR_S, 0), (0,)), ((HOUR_S, 0), (0,)), ((0,), (-HOUR_S,)), ((0,), (HOUR_S,)), ((-HOUR_S,), (-HOUR_S, 0))],
    ids=[
        "ahead, a new receiver",
        "back, a new receiver",
        "ahead, seen by one",
        "back, seen by one",
        "seen by the other",
    ],
)
def test_a_command_is_obeyed_when_the_brokers_clock_was_set_whoever_has_noticed(
    app: Celery, monkeypatch: pytest.MonkeyPatch, sender: tuple[float, ...], receiver: tuple[float, ...]
) -> None:
    handled: list[object] = []
    with app.connection_for_read() as connection:
        node = app.control.mailbox.Node("one@host", channel=connection.channel())
        node.listen(callback=lambda body, message: handled.append(body["method"]))
        monkeypatch.setattr(transport, "clock", clock_that_saw(*sender))
        app.control.broadcast("clock")
        receivers = clock_that_saw(*receiver)
        monkeypatch.setattr(transport, "clock", receivers)
        monkeypatch.setattr(broker_connection, "clock", receivers)
        drained(connection)
    assert handled == ["clock"]


def test_a_longer_wait_for_replies_is_cut_into_reads_that_no_connection_is_given_up_for(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    blpop = redis.Redis.blpop

    def noted(self: redis.Redis, keys: list[str], timeout: float) -> object:
        waits.append(timeout)
        return blpop(self, keys, timeout)

    monkeypatch.setattr(redis.Redis, "blpop", noted)
    monkeypatch.setattr(transport, "BLOCK_S", 0.05)
    assert app.control.ping(timeout=0.2) == []
    assert set(waits) == {0.05}


def drained(connection: Connection) -> bool:
    with contextlib.suppress(socket.timeout):
        connection.drain_events(timeout=0.05)
    return False


def test_every_command_that_is_refused_is_one_of_celerys() -> None:
    for command in (name for names in REFUSALS for name in names):
        assert command in Panel.data
        refusal = Panel.data[command](None, queue="q", task_id="t")
        assert set(refusal) == {"error"}
