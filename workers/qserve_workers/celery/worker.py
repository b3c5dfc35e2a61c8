"""The Celery worker of a replica: Celery's steps for start, control and end, and one of ours that runs the calls.

Celery's own worker reads its queue by kombu, and hands each message through a consumer and a strategy to a pool. A
replica reads its stream itself, so its blueprint has no step for any of that: see ``docs/architecture.md``.
"""

from __future__ import annotations

import signal
import socket
import threading
from typing import Any

from celery import Celery, bootsteps, signals
from celery.exceptions import ImproperlyConfigured, WorkerShutdown
from celery.worker import WorkController
from celery.worker.consumer import Connection, Consumer, Events
from celery.worker.control import control_command, inspect_command, nok
from celery.worker.pidbox import Pidbox

from qserve.base.log import get_logger
from qserve.base.turns import Turns
from qserve.broker.connection import BLOCK_S, CLIENT_ERRORS
from qserve.engine.invoke import run_loop
from qserve.exceptions import BrokerError, BrokerUnavailable
from qserve_workers.replica.replica import Replica

log = get_logger(__name__)
_RECONNECT_S = 1.0


class RemoteControl(bootsteps.StartStopStep):  # type: ignore[misc]
    """Celery's remote control (``inspect``, ``control``) in its own thread.

    In the place of Celery's ``Control`` step, whose messages the worker's own loop reads. This one keeps one
    connection, and opens another when that is lost, independently of the calls.
    """

    requires = (Connection,)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._pidbox = Pidbox(consumer)
        self._stopping = threading.Event()

    def start(self, consumer: Any) -> None:
        self._stopping.clear()
        threading.Thread(target=self._serve, args=(consumer,), name="remote-control", daemon=True).start()

    def stop(self, consumer: Any) -> None:
        """Stop answering; the thread itself ends with its connection, or with the process."""
        self._stopping.set()

    shutdown = stop

    def _serve(self, consumer: Any) -> None:
        turns = Turns("remote control", log, first_s=_RECONNECT_S, is_quiet=True)
        is_connected = False
        while not self._stopping.is_set():
            with turns:
                try:
                    if not is_connected:
                        self._pidbox.start(consumer)
                        is_connected = True
                    self._answer_next(consumer)
                except Exception as error:
                    if self._stopping.is_set():
                        return  # the connection has been closed
                    is_connected = False
                    consumer.connection.collect()
                    if isinstance(error, CLIENT_ERRORS) and not isinstance(error, BrokerError):
                        raise BrokerUnavailable(f"the broker cannot be reached: {error}") from error
                    raise
            self._stopping.wait(turns.pause_s)

    def _answer_next(self, consumer: Any) -> None:
        try:
            consumer.connection.drain_events(timeout=BLOCK_S)
        except TimeoutError:
            return
        except SystemExit as request:  # how Celery's command `shutdown` asks for it
            consumer.controller.stop_replica(request.code)


class CallLoop(bootsteps.StartStopStep):  # type: ignore[misc]
    """Runs the replica on its asyncio loop until the worker is stopped; in the place of Celery's ``Evloop``."""

    requires = (RemoteControl,)
    last = True

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        if not isinstance(consumer.controller, ReplicaWorker):
            raise ImproperlyConfigured(
                "this Celery application has no tasks to run; start replicas with `qserve worker`"
            )
        self._replica = consumer.controller.replica

    def start(self, consumer: Any) -> None:
        """Take calls until stopped, finish those that have begun, and have Celery shut down."""
        loop = self._replica.loop
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._replica.stop)
        raise WorkerShutdown(run_loop(loop, loop.create_task(self._replica.run(consumer.on_ready))))

    def info(self, consumer: Any) -> dict[str, Any]:
        """Return what `celery inspect stats` shows of the replica."""
        return {
            "prefetch_count": self._replica.spec.options.max_ongoing,
            "running": len(self._replica.invoker.running()),
        }


class ReplicaConsumer(Consumer):  # type: ignore[misc]
    """Celery's consumer, without the steps that read tasks by kombu."""

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc]
        """``Mingle``, ``Gossip`` and ``Heart`` are left out as well: supervisors watch replicas by other means."""

        default_steps = (Connection, Events, RemoteControl, CallLoop)


class ReplicaWorker(WorkController):  # type: ignore[misc]
    """A Celery worker that holds one replica."""

    def __init__(self, app: Celery, replica: Replica, application: str) -> None:
        self.replica = replica
        super().__init__(
            app=app,
            hostname=f"{application}.{replica.spec.name}@{socket.gethostname()}",
            pool="solo",  # none: the loop runs the calls,
            concurrency=1,
            task_events=False,
            without_gossip=True,
            without_heartbeat=True,
        )

    def on_consumer_ready(self, consumer: Any) -> None:
        """Notify Celery's listeners that calls are taken."""
        signals.worker_ready.send(sender=consumer)

    def stop_replica(self, exit_code: int = 0) -> None:
        """Have the replica finish what runs, and the worker end; from any thread."""
        self.replica.loop.call_soon_threadsafe(self.replica.stop, exit_code)


@inspect_command()  # type: ignore[untyped-decorator]
def active_queues(state: Any, **kwargs: Any) -> list[dict[str, str]]:
    """List the streams that a replica reads; Celery's own command asks a kombu consumer."""
    return [{"name": stream} for stream in state.consumer.controller.replica.reader.streams]


REFUSALS = {
    ("add_consumer", "cancel_consumer"): "a replica reads the streams of its deployment only, so this changes nothing",
    ("pool_grow", "pool_shrink", "pool_restart", "autoscale"): (
        "a replica has no pool: change num_replicas or max_ongoing_requests of its deployment, and deploy"
    ),
    ("rate_limit", "time_limit"): (
        "calls of deployments are not Celery tasks: set max_ongoing_requests or max_execution_s of the deployment"
    ),
    ("revoke", "terminate", "revoke_by_stamped_headers"): (
        "calls of deployments are not Celery tasks: cancel the request by response.cancel() or DELETE /-/requests/<id>"
    ),
    ("enable_events", "disable_events", "heartbeat", "election"): "replicas send no Celery events",
}
"""Celery's commands that a replica cannot carry out, and what to use instead."""


def _refuse(commands: tuple[str, ...], why: str) -> None:
    for command in commands:
        control_command(name=command)(lambda state, **kwargs: nok(why))


for _commands, _why in REFUSALS.items():
    _refuse(_commands, _why)
