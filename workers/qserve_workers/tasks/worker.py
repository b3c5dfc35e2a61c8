"""The worker of ``qserve tasks``: Celery's own, which learns from the registry what its tasks and its queues are."""

from __future__ import annotations

import contextlib
import threading
from typing import Any, NamedTuple

from celery import Celery, signals
from celery.app.trace import build_tracer
from celery.utils.nodenames import gethostname
from celery.worker.consumer import Consumer
from kombu.utils.encoding import safe_repr

from qserve.base.log import get_logger
from qserve.base.settings import Settings
from qserve.base.turns import Turns
from qserve.calls.client import ClientPlane
from qserve.exceptions import PayloadError, QserveException
from qserve.tracing.start import start as start_tracing
from qserve_workers.tasks.names import TaskNames, TaskTarget
from qserve_workers.tasks.task import DeploymentTask, TaskCalls
from qserve_workers.tasks.transport import install

log = get_logger(__name__)
REFRESH_S = 1.0
RESTORE_S = 5.0
"""How often tasks of processes that were killed are looked for; kombu does so every 100 s only."""
_LOCK_S = 10
WAIT_FOR_DEPLOY_S = 5.0
"""How long the task of an application that is not deployed stays here before it goes back to its queue."""
STOP_WITHIN_S = 1.0
"""How long a worker that stops waits for results, before the tasks that wait go back to their queue."""
_NAMES_KEPT = 10_000
_SHOWN_CHARS = 4096


class TasksOptions(NamedTuple):
    """What Celery is told.

    Parameters:
      broker, backend: The addresses of Celery's broker, and of its result backend.
      queues: The queues for tasks that are called by their own names.
      concurrency: How many tasks may wait for their results here.
      visibility_timeout_s: How long after the death of a worker its tasks come again.
    """

    broker: str
    backend: str
    queues: tuple[str, ...] = ("qserve",)
    concurrency: int = 100
    visibility_timeout_s: int = 300


def make_tasks_app(settings: Settings, options: TasksOptions) -> Celery:
    """Create a Celery application whose tasks are the deployments of an installation."""
    app = Celery("qserve.tasks", broker=options.broker, backend=options.backend)
    app.conf.update(
        accept_content=["json", "msgpack"],
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"visibility_timeout": options.visibility_timeout_s, "unacked_mutex_expire": _LOCK_S},
        task_acks_late=True,
        task_default_queue=options.queues[0],
        task_reject_on_worker_lost=True,
        task_send_sent_event=False,
        worker_consumer="qserve_workers.tasks.worker:TasksConsumer",
        worker_deduplicate_successful_tasks=True,
        worker_hijack_root_logger=False,
        worker_prefetch_multiplier=1,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=True,
    )
    start_tracing(settings, "tasks")
    plane = ClientPlane(settings)
    app.names = TaskNames(plane.registry)
    # twice: a task that comes again is not found again at once
    app.calls = TaskCalls(plane, keep_s=2.0 * options.visibility_timeout_s)
    return app


def run_worker(app: Celery, options: TasksOptions) -> int:
    """Run a worker until it is stopped, and return the exit code."""

    def stop_soon(**_: Any) -> None:
        timer = threading.Timer(STOP_WITHIN_S, app.calls.stop)
        timer.daemon = True
        timer.start()

    install()
    signals.setup_logging.connect(lambda **_: None, weak=False)  # ours stays
    signals.worker_shutting_down.connect(stop_soon, weak=False)
    worker = app.Worker(
        hostname=f"tasks@{gethostname()}", pool="threads", concurrency=options.concurrency,
        queues=",".join(options.queues), without_gossip=True, without_mingle=True, quiet=True,
    )  # fmt: skip
    worker.start()
    return worker.exitcode or 0


class TasksConsumer(Consumer):  # type: ignore[misc]
    """Celery's consumer, which looks the tasks of messages up among the deployments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._turns = Turns("reading what is deployed", log)

    def on_ready(self) -> None:
        """Follow the registry from now on; Celery calls this again after each lost connection."""
        super().on_ready()
        self._refresh()
        self.timer.call_repeatedly(REFRESH_S, self._refresh)
        self.timer.call_repeatedly(RESTORE_S, self._restore)
        log.info("tasks are taken from the queues %s", ", ".join(sorted(self.app.amqp.queues.consume_from)))

    def _refresh(self) -> None:
        with self._turns:
            if not self.app.names.refresh():
                return
            for target in self.app.names.all():
                self._learn(target)
            for queue in self.app.names.queues:
                if queue not in self.app.amqp.queues.consume_from:
                    self.add_task_queue(queue)
                    log.info("tasks are taken from the queue %s", queue)

    def _restore(self) -> None:
        """Put the tasks of processes that were killed back into their queues; transports without this do so alone."""
        qos = self.task_consumer.channel.qos
        if hasattr(qos, "restore_visible"):
            with self._turns:
                qos.restore_visible(interval=1)

    def _learn(self, target: TaskTarget) -> None:
        """Make a task of a deployment's method, unless there is one already."""
        known = self.app.tasks.get(target.name)
        if target.name in self.strategies and known.target == target:
            return
        task = DeploymentTask(target, self.app.calls)
        self.app.register_task(task)
        task.__trace__ = build_tracer(task.name, task, self.app.loader, self.hostname, app=self.app)
        self.strategies[task.name] = task.start_strategy(self.app, self)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Any:
        """Return what Celery calls with each message: tasks are looked up by name and queue, then handled as ever."""
        handle = super().create_task_handler(*args, **kwargs)

        def on_message(message: Any) -> None:
            about, queue = _about(message), _queue_of(message)
            name = about.get("task")
            if not isinstance(name, str):
                self._refuse(message, ValueError("it names no task"))
                return
            if name.startswith("celery."):
                handle(message)
                return
            target = self.app.names.find(name, queue)
            if target is None:
                self._refresh()
                target = self.app.names.find(name, queue)
            if target is None:
                self._on_unknown(message, name, queue)
                return
            if len(self.app.tasks) > _NAMES_KEPT:
                self._forget_methods()
            self._learn(target)
            about["task"] = target.name
            try:
                handle(message)
            except (TypeError, ValueError, AttributeError, KeyError) as error:  # made up by somebody
                self._refuse(message, error)

        return on_message

    def _forget_methods(self) -> None:
        """Forget the tasks of methods, which are learned again: anybody may have sent any number of names."""
        kept = {target.name for target in self.app.names.all()}
        for name in [name for name in self.app.tasks if name not in kept and not name.startswith("celery.")]:
            del self.app.tasks[name]
            self.strategies.pop(name, None)

    def _on_unknown(self, message: Any, name: str, queue: str) -> None:
        consumer = self.app.names.queues.get(queue)
        if consumer is None and self.app.names.may_come(name):
            log.warning("task %s waits until its application is deployed", name)
            self.timer.call_after(WAIT_FOR_DEPLOY_S, message.requeue)
            return
        why = self.app.names.unknown(name)
        log.error("%s", why)
        if consumer is not None and consumer.unprocessable:
            self._keep(message, consumer.unprocessable, why)
        self._fail(message, QserveException(why))

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Fail a task whose message may not be read: another content than JSON and msgpack, or no arguments."""
        self._refuse(message, exc)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Fail a task whose message cannot be read."""
        self._refuse(message, exc)

    def _refuse(self, message: Any, exc: Exception) -> None:
        queue = _queue_of(message)
        log.error("a message of the queue %s cannot be read: %r", queue, exc)
        consumer = self.app.names.queues.get(queue)
        if consumer is not None and consumer.unprocessable:
            self._keep(message, consumer.unprocessable, str(exc))
        self._fail(message, PayloadError(f"{exc}. Tasks are sent as json or msgpack"))

    def _keep(self, message: Any, queue: str, why: str) -> None:
        """Send what cannot run to the queue for that, with the arguments that Ray Serve gives such a task.

        Crash before this is sent: the message comes again. Crash after: the same, and it is sent once more, under the
        same id.
        """
        about = _about(message)
        name, task_id = str(about.get("task")), str(about.get("id"))
        shown = safe_repr(message.body)[:_SHOWN_CHARS]
        self.app.send_task(name, args=[name, task_id, shown, why, {}], queue=queue, task_id=f"{task_id}-unprocessable")

    def _fail(self, message: Any, error: Exception) -> None:
        """End a task that cannot run, so that its producer does not wait for ever."""
        task_id = _about(message).get("id")
        if isinstance(task_id, str):
            self.app.backend.mark_as_failure(task_id, error)
        message.ack_log_error(log, self.connection_errors)


def _about(message: Any) -> dict[str, Any]:
    """Return where a message has its task's name and id: its headers, or its body in Celery's older protocol."""
    headers = message.headers if isinstance(message.headers, dict) else {}
    if "task" not in headers:
        with contextlib.suppress(Exception):  # it cannot be read, which Celery finds as well
            payload = message.payload
            return payload if isinstance(payload, dict) else headers
    return headers


def _queue_of(message: Any) -> str:
    info = message.delivery_info
    return str(info.get("routing_key", "")) if isinstance(info, dict) else ""
