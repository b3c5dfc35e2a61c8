"""The one Celery task: a call. Its strategy hands raw messages to the replica."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Task

from qserve_workers.celery.transport import CALL_TASK


def strategy(task: Task, app: Any, consumer: Any, **kwargs: Any) -> Callable[..., None]:
    """What Celery does with a message of this task: no Request and no tracer, straight to the replica."""
    accept = consumer.controller.replica.accept

    def handle(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **options: Any) -> None:
        accept(message)

    return handle


class CallTask(Task):  # type: ignore[misc]
    """A call of a deployment; only replicas run it, and never through Celery's pool."""

    name = CALL_TASK
    Strategy = "qserve_workers.celery.task:strategy"
    ignore_result = True

    def run(self) -> None:
        """Never called: the strategy takes the message first."""
