"""Celery's tools and Flower, pointed at replicas: what they show is true, and what cannot be done is refused."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.app.control import Inspect
from http_client import Client
from installation import Installation, installed
from processes import PATIENCE_S, free_port, new_site, wait_until
from qserve_workers.celery.app import make_celery

from qserve.base.settings import Settings

pytestmark = pytest.mark.slow
SOURCE = """
import asyncio, pathlib, time
import qserve

@qserve.deployment
class Machine:
    async def wait_for(self, gate):
        while not pathlib.Path(gate).exists():
            await asyncio.sleep(0.01)
        return "done"
    def hold(self, gate):
        while not pathlib.Path(gate).exists():
            time.sleep(0.01)
    def fail(self):
        raise ValueError("no such luck")
    def _hidden(self):
        pass
    def check_health(self):
        pass

app = Machine.bind()
"""
WAIT_FOR, FAIL = "qserve.default.Machine.wait_for", "qserve.default.Machine.fail"


@pytest.fixture(scope="module")
def shop() -> Iterator[Installation]:
    with new_site() as site, installed(site, SOURCE) as shop:
        shop.worker_process = shop.serve()  # type: ignore[attr-defined]
        yield shop


@pytest.fixture(scope="module")
def tool(shop: Installation) -> Iterator[Celery]:
    app = make_celery(Settings(broker_url=shop.url, secret_key=shop.plane.settings.secret_key))
    yield app
    app.pool.force_close_all()


@pytest.fixture
def inspect(tool: Celery) -> Inspect:
    return tool.control.inspect(timeout=PATIENCE_S, limit=1)


def only(reply: Any) -> Any:
    ((_, found),) = reply.items()
    return found


@contextlib.contextmanager
def captured(tool: Celery) -> Iterator[list[dict[str, Any]]]:
    """Collect the events that are sent meanwhile."""
    seen: list[dict[str, Any]] = []
    with tool.connection_for_read() as connection:
        receiver = tool.events.Receiver(connection, handlers={"*": seen.append})
        ready = threading.Event()
        receiver.on_consume_ready = lambda *args, **kwargs: ready.set()
        thread = threading.Thread(target=receiver.capture, kwargs={"wakeup": False})
        thread.start()
        assert ready.wait(PATIENCE_S)
        try:
            yield seen
        finally:
            receiver.should_stop = True
            thread.join(PATIENCE_S)


def test_what_is_inspected_is_what_runs_waits_and_has_run(shop: Installation, inspect: Inspect, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    running = shop.call("wait_for", str(gate))
    (active,) = wait_until(lambda: only(inspect.active()), description="the call is listed")
    assert (active["id"], active["name"]) == (running.request_id, WAIT_FOR)
    assert str(gate) not in json.dumps(active)
    assert active["worker_pid"] in shop.pids()
    found = only(inspect.query_task(running.request_id, "0" * 32))
    assert {key: kind for key, (kind, _) in found.items()} == {running.request_id: "active"}

    held, waiting = shop.call("hold", str(gate)), shop.call("hold", str(gate))
    reserved = wait_until(lambda: only(inspect.reserved()) or "elsewhere", description="a reply")
    assert reserved == "elsewhere" or [call["name"] for call in reserved] == ["qserve.default.Machine.hold"]
    gate.touch()
    assert [ref.result(PATIENCE_S) for ref in (running, held, waiting)] == ["done", None, None]

    assert (
        only(inspect.active()) == only(inspect.reserved()) == only(inspect.scheduled()) == only(inspect.revoked()) == []
    )
    assert only(inspect.registered()) == [f"qserve.default.Machine.{name}" for name in ("fail", "hold", "wait_for")]
    stats = only(inspect.stats())
    assert stats["total"][WAIT_FOR] == 1
    assert stats["total"]["qserve.default.Machine.hold"] == 2
    assert stats["pool"]["max-concurrency"] == 100
    (queue,) = only(inspect.active_queues())
    assert queue["name"] == shop.queue
    assert only(inspect.conf())["task_default_queue"] == "qserve"


@pytest.mark.parametrize(
    ("command", "arguments", "hint"),
    [
        ("pool_grow", {"n": 2}, "num_replicas"),
        ("autoscale", {"max": 3, "min": 1}, "num_replicas"),
        ("revoke", {"task_id": "x"}, "response.cancel()"),
        ("terminate", {"task_id": "x", "signal": "KILL"}, "response.cancel()"),
        ("rate_limit", {"task_name": FAIL, "rate_limit": "1/s"}, "max_ongoing_requests"),
        ("add_consumer", {"queue": "q"}, "streams of its deployment"),
        ("election", {"id": "x", "topic": "t"}, "gossip"),
    ],
)
def test_what_a_replica_cannot_do_is_refused_with_what_to_use(
    shop: Installation, tool: Celery, command: str, arguments: dict[str, Any], hint: str
) -> None:
    (reply,) = tool.control.broadcast(command, arguments=arguments, reply=True, timeout=PATIENCE_S, limit=1)
    assert hint in only(reply)["error"]
    assert "control command" not in shop.worker_process.stderr  # type: ignore[attr-defined]


def test_events_are_sent_while_they_are_enabled(shop: Installation, tool: Celery) -> None:
    def control(command: str) -> str:
        (reply,) = tool.control.broadcast(command, reply=True, timeout=PATIENCE_S, limit=1)
        return str(only(reply)["ok"])

    control("disable_events")  # which another test may have enabled
    with captured(tool) as seen:
        assert control("enable_events") == "task events enabled"
        assert control("enable_events") == "task events already enabled"
        failed = shop.call("fail")
        with pytest.raises(ValueError, match="no such luck"):
            failed.result(PATIENCE_S)
        wait_until(
            lambda: any(event.get("uuid") == failed.request_id and "exception" in event for event in seen),
            description="the event of its failure",
        )
        assert control("disable_events") == "task events disabled"
    of_call = [event for event in seen if event.get("uuid") == failed.request_id]
    assert [event["type"] for event in of_call] == ["task-received", "task-started", "task-failed"]
    assert of_call[0]["name"] == FAIL
    assert of_call[2]["exception"] == "ValueError('no such luck')"
    assert "worker-online" in {event["type"] for event in seen}


def test_a_replica_that_ends_says_so_after_its_last_call(shop: Installation, tool: Celery, tmp_path: Path) -> None:
    def of_replica() -> list[str]:
        return [event["type"] for event in seen if event["hostname"] == replica]

    with captured(tool) as seen:
        tool.control.broadcast("enable_events", reply=True, timeout=PATIENCE_S, limit=1)
        call = shop.call("wait_for", str(tmp_path / "gate"))
        began, *_ = wait_until(
            lambda: [event for event in seen if event.get("uuid") == call.request_id],
            description="the event of its begin",
        )
        replica = began["hostname"]
        tool.control.broadcast("shutdown")
        (tmp_path / "gate").touch()
        assert call.result(PATIENCE_S) == "done"
        wait_until(lambda: "worker-offline" in of_replica(), description="the event of the replica's end")
    assert of_replica()[-1] == "worker-offline"
    assert [event["type"] for event in seen if event.get("uuid") == call.request_id][-1] == "task-succeeded"
    wait_until(
        lambda: any(name != replica for reply in tool.control.ping(timeout=1) for name in reply),
        description="another replica replies",
    )


@pytest.mark.long  # the tests above ask the same of Celery's own classes
def test_the_commands_of_the_document_show_the_replicas_their_calls_and_what_became_of_them(shop: Installation) -> None:
    pytest.importorskip("flower")
    port = free_port()
    options = {"PORT": str(port), "ADDRESS": "127.0.0.1", "INSPECT_TIMEOUT": "5000", "STATE_SAVE_INTERVAL": "0"}
    options["UNAUTHENTICATED_API"] = "1"
    flower = shop.type("celery.md", "flower", **{f"FLOWER_{name}": value for name, value in options.items()})

    def page(path: str) -> str:
        try:
            answer = Client(port, timeout_s=30).get(path)
        except OSError:
            return ""
        return answer.text if answer.status == 200 else ""

    def tasks() -> dict[str, Any]:
        with pytest.raises(ValueError, match="no such luck"):
            shop.ask("fail")
        return {task["name"]: task for task in json.loads(page("/api/tasks") or "{}").values()}

    failed, *_ = wait_until(
        lambda: [task for task in tasks().values() if task["state"] == "FAILURE"],
        description="flower lists a failed call",
    )
    assert (failed["name"], failed["exception"]) == (FAIL, "ValueError('no such luck')")
    (worker,) = json.loads(page("/api/workers?refresh=1"))
    shown = wait_until(lambda: page(f"/worker/{worker}"), description="the page of the replica")
    assert FAIL in shown
    assert shop.queue in shown
    assert "- empty -" in flower.stdout  # what `inspect active` has printed before
    assert "Traceback" not in flower.output, flower.output
