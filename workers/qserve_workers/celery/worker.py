"""The Celery worker of a replica: Celery's steps for start, control and end, and one of ours that runs the calls.

Celery's own worker reads its queue by kombu, and hands each message through a consumer and a strategy to a pool. A
replica reads its stream itself, so its blueprint has no step for any of that: see ``docs/architecture.md``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from typing import Any

from celery import Celery, bootsteps, signals
from celery.exceptions import ImproperlyConfigured, WorkerShutdown
from celery.worker import WorkController
from celery.worker.consumer import Connection, Consumer
from celery.worker.control import control_command, inspect_command, nok, ok
from celery.worker.pidbox import Pidbox
from kombu.utils.functional import maybe_list

from qserve.base.log import get_logger
from qserve.base.turns import Turns
from qserve.broker.connection import CLIENT_ERRORS
from qserve.engine.invoke import run_loop
from qserve.exceptions import BrokerError, BrokerUnavailable
from qserve_workers.celery.events import SEND_EVERY_S, CallEvents, CallView
from qserve_workers.celery.transport import BLOCK_S
from qserve_workers.replica.replica import Replica

log = get_logger(__name__)
_RECONNECT_S = 1.0
_LAST_EVENTS_S = 10 * SEND_EVERY_S
"""How long the end of a replica waits for its last events at most; usually a second, and on a busy host some more."""


class RemoteControl(bootsteps.StartStopStep):  # type: ignore[misc]
    """Celery's remote control (``inspect``, ``control``) and its events, in one thread of their own.

    In the place of Celery's steps ``Control``, whose messages the worker's own loop reads, and ``Events``. This one
    keeps one connection, and opens another when that is lost, independently of the calls.
    """

    requires = (Connection,)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        consumer.event_dispatcher = None  # Celery's code asks for it
        self._pidbox = Pidbox(consumer)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, consumer: Any) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._serve, args=(consumer,), name="remote-control", daemon=True)
        self._thread.start()

    def stop(self, consumer: Any) -> None:
        """Stop answering. The thread ends with its connection or with the process; it sends the last events before."""
        self._stopping.set()
        if self._thread is not None and consumer.controller.events.is_enabled:
            self._thread.join(_LAST_EVENTS_S)

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
                    consumer.controller.events.send(consumer.connection)
                except Exception as error:
                    if self._stopping.is_set():
                        return  # the connection has been closed
                    is_connected = False
                    consumer.controller.events.disconnect()
                    consumer.connection.collect()
                    if isinstance(error, CLIENT_ERRORS) and not isinstance(error, BrokerError):
                        raise BrokerUnavailable(f"the broker cannot be reached: {error}") from error
                    raise
            self._stopping.wait(turns.pause_s)
        if is_connected:
            with contextlib.suppress(Exception):  # the broker is away, and the replica ends
                consumer.controller.events.send_last(consumer.connection)

    def _answer_next(self, consumer: Any) -> None:
        try:
            consumer.connection.drain_events(timeout=SEND_EVERY_S if consumer.controller.events.is_enabled else BLOCK_S)
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
        limit = self._replica.spec.options.max_ongoing
        return {
            "prefetch_count": limit,
            "running": len(self._replica.invoker.running()),
            "pool": {"implementation": "asyncio", "max-concurrency": limit, "processes": [os.getpid()]},
        }


class ReplicaConsumer(Consumer):  # type: ignore[misc]
    """Celery's consumer, without the steps that read tasks by kombu."""

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc]
        """``Mingle``, ``Gossip`` and ``Heart`` are left out as well: supervisors watch replicas by other means."""

        default_steps = (Connection, RemoteControl, CallLoop)


class ReplicaWorker(WorkController):  # type: ignore[misc]
    """A Celery worker that holds one replica."""

    def __init__(self, app: Celery, replica: Replica, application: str) -> None:
        self.replica = replica
        hostname = f"{application}.{replica.spec.name}@{socket.gethostname()}"
        self.calls = CallView(replica, hostname)
        self.events = CallEvents(app, replica, self.calls, hostname)
        super().__init__(
            app=app,
            hostname=hostname,
            pool="solo",  # none: the loop runs the calls,
            concurrency=1,
            task_events=False,
            without_gossip=True,
            without_heartbeat=True,
        )

    def on_consumer_ready(self, consumer: Any) -> None:
        """Notify Celery's listeners that calls are taken."""
        signals.worker_ready.send(sender=consumer)

    def info(self) -> dict[str, Any]:
        """Return the first part of what `celery inspect stats` shows."""
        return {**super().info(), "total": self.calls.counts()}

    def stop_replica(self, exit_code: int = 0) -> None:
        """Have the replica finish what runs, and the worker end; from any thread."""
        self.replica.loop.call_soon_threadsafe(self.replica.stop, exit_code)


# -- Celery's commands, about calls instead of tasks ---------------------------------------------------


@inspect_command()  # type: ignore[untyped-decorator]
def active_queues(state: Any, **kwargs: Any) -> list[dict[str, Any]]:
    """List the streams that a replica reads."""
    # Flower wants all that Celery says of a queue
    about = {
        "exchange": {"name": "", "type": "direct"}, "exclusive": False, "durable": True, "no_ack": False,
        "alias": None, "queue_arguments": None, "binding_arguments": None, "auto_delete": False,
    }  # fmt: skip
    streams = state.consumer.controller.replica.reader.streams
    return [{"name": stream, "routing_key": stream, **about} for stream in streams]


@inspect_command(alias="dump_active")  # type: ignore[untyped-decorator]
def active(state: Any, **kwargs: Any) -> Any:
    """List the calls that run."""
    return state.consumer.controller.calls.active()


@inspect_command(alias="dump_reserved")  # type: ignore[untyped-decorator]
def reserved(state: Any, **kwargs: Any) -> Any:
    """List the calls that have been read and have not begun."""
    return state.consumer.controller.calls.reserved()


@inspect_command(alias="dump_tasks", variadic="taskinfoitems", signature="")  # type: ignore[untyped-decorator]
def registered(state: Any, **kwargs: Any) -> Any:
    """List the names of the deployment's methods."""
    return state.consumer.controller.calls.names()


@inspect_command(variadic="ids", signature="[id1 [id2 [... [idN]]]]")  # type: ignore[untyped-decorator]
def query_task(state: Any, ids: Any = (), **kwargs: Any) -> dict[str, Any]:
    """Look calls up by the ids of their requests."""
    wanted, calls = {*maybe_list(ids)}, state.consumer.controller.calls
    found = {"active": calls.active(), "reserved": calls.reserved()}
    return {call["id"]: (kind, call) for kind, listed in found.items() for call in listed if call["id"] in wanted}


@control_command()  # type: ignore[untyped-decorator]
def enable_events(state: Any, **kwargs: Any) -> dict[str, str]:
    """Send events of calls from now on."""
    return ok(f"task events {'' if state.consumer.controller.events.enable() else 'already '}enabled")  # type: ignore[no-any-return]


@control_command()  # type: ignore[untyped-decorator]
def disable_events(state: Any, **kwargs: Any) -> dict[str, str]:
    """Send no more events."""
    return ok(f"task events {'' if state.consumer.controller.events.disable() else 'already '}disabled")  # type: ignore[no-any-return]


@control_command()  # type: ignore[untyped-decorator]
def heartbeat(state: Any, **kwargs: Any) -> None:
    """Send an event of this replica at once, if events are enabled."""
    state.consumer.controller.events.send(state.consumer.connection, at_once=True)


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
    ("election",): "replicas do not gossip",
}
"""Celery's commands that a replica cannot carry out, and what to use instead."""


def _refuse(commands: tuple[str, ...], why: str) -> None:
    for command in commands:
        control_command(name=command)(lambda state, **kwargs: nok(why))


for _commands, _why in REFUSALS.items():
    _refuse(_commands, _why)
