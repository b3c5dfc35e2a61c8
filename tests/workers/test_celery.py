"""What Celery's side of a replica promises without one."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis
from celery import Celery
from celery.exceptions import ImproperlyConfigured
from celery.worker import WorkController
from celery.worker.control import Panel
from kombu import Connection
from processes import wait_until
from qserve_workers.celery.app import make_celery
from qserve_workers.celery.worker import REFUSALS

from qserve.base.clock import clock
from qserve.base.keys import CONTROL_TTL_MS, Keys
from qserve.base.settings import Settings


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
    with pytest.raises(ImproperlyConfigured, match="qserve worker"):
        WorkController(app=app, pool="solo", concurrency=1)


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
        judge_ms = clock.judge_ms
        monkeypatch.setattr(type(clock), "judge_ms", lambda self: judge_ms() + CONTROL_TTL_MS + 1000)
        client.xadd(stream, fields)
        app.control.broadcast("clock")
        wait_until(lambda: drained(connection) or handled, description="the genuine command arrives")
    assert handled == ["clock"]


def drained(connection: Connection) -> bool:
    with contextlib.suppress(socket.timeout):
        connection.drain_events(timeout=0.05)
    return False


def test_every_command_that_is_refused_is_one_of_celerys() -> None:
    for command in (name for names in REFUSALS for name in names):
        assert command in Panel.data
        refusal = Panel.data[command](None, queue="q", task_id="t")
        assert set(refusal) == {"error"}
