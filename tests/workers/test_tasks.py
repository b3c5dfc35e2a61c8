"""What the names of tasks lead to, and what becomes of messages that lead nowhere; without a broker."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from qserve_workers.tasks import worker
from qserve_workers.tasks.command import celery_address
from qserve_workers.tasks.names import TaskNames
from qserve_workers.tasks.task import DeploymentTask
from qserve_workers.tasks.worker import TasksConsumer, TasksOptions, make_tasks_app

from qserve.base.settings import Settings
from qserve.exceptions import UsageProblem
from qserve.wire.application import ApplicationRecord, DeploymentRecord, TaskQueue
from qserve.wire.request_ids import is_of_value, value_id_of_key

QUEUE = TaskQueue("jobs", {"process": "run"}, failed="broken", unprocessable="strange")


class FakeRegistry:
    """Holds one application of two deployments, one of which consumes a queue."""

    change = "1-0"

    def last_change(self) -> str:
        return self.change

    def all(self) -> Iterator[ApplicationRecord]:
        deployments = {"Model": DeploymentRecord("Model"), "Worker": DeploymentRecord("Worker", tasks=QUEUE)}
        yield ApplicationRecord("shop", "v", "Model", deployments=deployments)


@pytest.fixture
def names() -> TaskNames:
    made = TaskNames(FakeRegistry())  # type: ignore[arg-type]
    assert made.refresh()
    assert not made.refresh()
    return made


@pytest.mark.parametrize(
    ("name", "queue", "called"),
    [
        ("qserve.shop.Model", "qserve", ("Model", "__call__")),
        ("qserve.shop.Model.predict", "qserve", ("Model", "predict")),
        ("qserve.shop.Worker", "jobs", ("Worker", "__call__")),
        ("process", "jobs", ("Worker", "run")),
        ("qserve.shop.Worker.run", "jobs", ("Worker", "run")),
        ("process", "another", ("Worker", "run")),
        ("qserve.shop.Model._secret", "qserve", None),
        ("qserve.shop.Model.__init__", "qserve", None),
        ("qserve.shop.Nothing", "qserve", None),
        ("qserve.shop.Model.a.b", "qserve", None),
        ("", "qserve", None),
    ],
)
def test_a_name_leads_to_a_method(names: TaskNames, name: str, queue: str, called: tuple[str, str] | None) -> None:
    found = names.find(name, queue)
    assert (None if found is None else (found.deployment, found.method)) == called


def test_only_the_name_of_an_application_that_is_not_deployed_may_come_true(names: TaskNames) -> None:
    assert names.may_come("qserve.later.Model")
    assert not names.may_come("qserve.shop.Nothing")
    assert not names.may_come("somebody.else")
    assert "Did you mean 'qserve.shop.Model'?" in names.unknown("qserve.shop.Modell")


class FakeMessage:
    """A message as kombu gives it, which notes what becomes of it."""

    def __init__(self, name: Any, queue: str = "qserve") -> None:
        self.headers = {"task": name, "id": uuid4().hex}
        self.delivery_info = {"routing_key": queue}
        self.body = b"[]"
        self.fate = ""

    def requeue(self) -> None:
        self.fate = "requeued"

    def ack_log_error(self, *args: Any) -> None:
        self.fate = "acknowledged"


@pytest.fixture
def consumer(names: TaskNames, monkeypatch: pytest.MonkeyPatch) -> TasksConsumer:
    app = make_tasks_app(Settings(broker_url="redis://nowhere.invalid"), TasksOptions("memory://", "cache+memory://"))
    app.names = names
    monkeypatch.setattr(DeploymentTask, "start_strategy", lambda *args: args)
    made = object.__new__(TasksConsumer)
    made.__dict__.update(
        app=app, strategies={}, hostname="h", connection_errors=(), _turns=worker.Turns("x", worker.log),
        timer=SimpleNamespace(call_after=lambda seconds, what: what()),
    )  # fmt: skip
    return made


def handled(consumer: TasksConsumer, message: FakeMessage, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []
    monkeypatch.setattr(worker.Consumer, "create_task_handler", lambda self: seen.append)
    consumer.create_task_handler()(message)
    return seen


@pytest.mark.parametrize(
    ("name", "queue", "fate", "kept_in"),
    [
        ("qserve.later.Model", "qserve", "requeued", None),
        ("qserve.shop.Nothing", "qserve", "acknowledged", None),
        ("nonsense", "qserve", "acknowledged", None),
        ("nonsense", "jobs", "acknowledged", "strange"),
        ("qserve.later.Model", "jobs", "acknowledged", "strange"),
    ],
)
def test_a_task_that_cannot_run_waits_or_fails_and_is_kept_where_its_queue_says(
    consumer: TasksConsumer, monkeypatch: pytest.MonkeyPatch, name: str, queue: str, fate: str, kept_in: str | None
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(consumer.app, "send_task", lambda name, args, queue, task_id: sent.append((name, queue)))
    message = FakeMessage(name, queue)
    assert handled(consumer, message, monkeypatch) == []
    assert message.fate == fate
    assert sent == ([(name, kept_in)] if kept_in else [])
    state = consumer.app.AsyncResult(message.headers["id"]).state
    assert state == ("FAILURE" if fate == "acknowledged" else "PENDING")


def test_names_that_are_made_up_do_not_gather(consumer: TasksConsumer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_NAMES_KEPT", 20)
    for number in range(100):
        message = FakeMessage(f"qserve.shop.Model.method{number}")
        assert handled(consumer, message, monkeypatch) == [message]
    assert len(consumer.app.tasks) <= 22
    assert len(consumer.strategies) <= 22


def test_an_id_that_follows_from_a_tasks_cannot_be_told_without_the_key() -> None:
    ids = {value_id_of_key("task", *other) for other in (("a", b"k"), ("a", b"l"), ("b", b"k"), ("a", None))}
    assert len(ids) == 4
    assert all(map(is_of_value, ids))
    assert value_id_of_key("task", "a", b"k") in ids


@pytest.mark.parametrize(
    ("ours", "celerys"),
    [
        ("redis://user:word@host:1/2", "redis://user:word@host:1/2"),
        ("rediss://host:1/2", "rediss://host:1/2?ssl_cert_reqs=required"),
        ("rediss://host:1/2?ssl_cert_reqs=none", "rediss://host:1/2?ssl_cert_reqs=none"),
        ("unix:///run/broker.sock", "redis+socket:///run/broker.sock"),
    ],
)
def test_the_brokers_address_is_written_as_celery_writes_it(ours: str, celerys: str) -> None:
    assert celery_address(ours) == celerys


def test_an_address_that_celery_writes_otherwise_is_asked_for() -> None:
    with pytest.raises(UsageProblem, match="--celery-broker"):
        celery_address("sentinel://host:26379/service/0")
