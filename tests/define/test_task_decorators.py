"""What `task_consumer` and `task_handler` register, and what they refuse."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

import qserve as serve
from qserve.define.compile import compile_application
from qserve.deploy.registration import record_of
from qserve.schema import CeleryAdapterConfig, TaskProcessorConfig
from qserve.task_consumer import instantiate_adapter_from_config, task_consumer, task_handler
from qserve.wire.application import ApplicationRecord, TaskQueue
from qserve.wire.codec import Codec

CELERY = CeleryAdapterConfig(broker_url="redis://:word@host/0", backend_url="redis://:word@host/1")


def config(**changes: Any) -> TaskProcessorConfig:
    return TaskProcessorConfig(**{"queue_name": "jobs", "adapter_config": CELERY, **changes})


def consumer(**changes: Any) -> Any:
    @task_consumer(task_processor_config=config(**changes))
    class Consumer:
        @task_handler
        def first(self) -> None: ...

        @task_handler(name="second")
        async def other(self) -> None: ...

        def no_task(self) -> None: ...

    return Consumer


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, TaskQueue("jobs", {"first": "first", "second": "other"})),
        (
            {"max_retries": None, "failed_task_queue_name": "f", "unprocessable_task_queue_name": "u"},
            TaskQueue("jobs", {"first": "first", "second": "other"}, -1, "f", "u"),
        ),
    ],
)
def test_a_record_names_the_queue_and_its_tasks_and_no_password(changes: dict[str, Any], expected: TaskQueue) -> None:
    record = record_of(compile_application(serve.deployment(consumer(**changes)).bind()), Codec())
    encoded = record.encode()
    assert ApplicationRecord.decode(encoded).deployments["Consumer"].tasks == expected
    assert b"word" not in encoded


def test_what_has_no_effect_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    settings = CELERY.model_copy(update={"task_custom_config": {"retry_backoff": 2}, "worker_concurrency": 3})
    made = consumer(adapter_config=settings)
    record_of(compile_application(serve.deployment(made).bind()), Codec())
    (warning,) = [line.getMessage() for line in caplog.records if line.levelno == logging.WARNING]
    assert "task_custom_config" in warning
    assert "worker_concurrency" in warning


def on_a_deployment() -> None:
    task_consumer(task_processor_config=config())(serve.deployment(consumer()))  # type: ignore[type-var]


def without_a_handler() -> None:
    task_consumer(task_processor_config=config())(type("Empty", (), {}))


def with_two_of_one_name() -> None:
    @task_consumer(task_processor_config=config())
    class Twice:
        @task_handler(name="same")
        def one(self) -> None: ...

        @task_handler(name="same")
        def two(self) -> None: ...


@pytest.mark.parametrize(
    ("act", "error", "words"),
    [
        (on_a_deployment, TypeError, "below @serve.deployment"),
        (without_a_handler, ValueError, "Empty has no method with @task_handler"),
        (with_two_of_one_name, ValueError, "handlers of one task"),
        (lambda: task_handler(name=" "), ValueError, "must be text that is not empty"),
        (lambda: consumer(adapter_config={"broker_url": "x"}), TypeError, "must be a CeleryAdapterConfig"),
        (lambda: consumer(adapter="my.Adapter"), TypeError, "leave `adapter` out"),
        (lambda: consumer(queue_name=""), ValueError, "queue_name"),
        (lambda: consumer(queue_name="two words"), ValueError, "queue_name"),
        (lambda: consumer(max_retries=-1), ValueError, "max_retries"),
        (lambda: instantiate_adapter_from_config(config(adapter=dict)), TypeError, "a subclass of"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_write(act: Callable[[], Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        act()
