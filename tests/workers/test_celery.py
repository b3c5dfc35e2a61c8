"""What Celery's side of a replica promises without one."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
import redis
from celery import Celery
from celery.exceptions import ImproperlyConfigured
from celery.worker import WorkController
from kombu import Connection
from qserve_workers.celery.app import make_celery

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
        assert ready.wait(10)
        try:
            found = app.control.inspect(timeout=5.0, limit=1).ping()
        finally:
            asked.set()
            thread.join(10)
    assert found == {"one@host": {"ok": "pong"}}
