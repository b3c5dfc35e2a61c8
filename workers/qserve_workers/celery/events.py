"""The calls of a replica as Celery's tools see them: their names and counts, those that run, and events.

Replicas run no Celery tasks. So nothing here reads Celery's own records of tasks, which are empty. Events are sent only
while somebody wants them, once a second from the thread of remote control. A call pays for them with one ``if``.
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Any, NamedTuple

from celery import Celery
from celery.events import EventDispatcher
from celery.worker import state as worker_state

from qserve.wire.failure import Failure
from qserve.wire.outcome import State
from qserve_workers.replica.commit import POSTPONED
from qserve_workers.replica.reader import Work
from qserve_workers.replica.replica import Replica

SEND_EVERY_S = 1.0
_HEARTBEAT_S = 5
KEPT_CALLS = 1_000
"""How many calls may end in a second and still be told of; those beyond are in the counts only."""
_EVENTS_PER_MESSAGE = 200
_TYPES = {State.DONE: "task-succeeded", "": "task-succeeded", State.FAILED: "task-failed", POSTPONED: "task-retried"}


def name_of(app: str, deployment: str, method: str = "__call__") -> str:
    """Return the name of a deployment's method for Celery: ``qserve.shop.Model``, ``qserve.shop.Model.predict``."""
    return f"qserve.{app}.{deployment}" + ("" if method == "__call__" else f".{method}")


class CallView:
    """What Celery's tools may know of a replica's calls; from any thread."""

    def __init__(self, replica: Replica, hostname: str) -> None:
        self._replica = replica
        self._hostname = hostname

    def active(self) -> list[dict[str, Any]]:
        """Return the calls that run, as Celery describes tasks; their arguments are not shown."""
        return [self._shown(work) for work in self._replica.invoker.running()]

    def reserved(self) -> list[dict[str, Any]]:
        """Return the calls that have been read, and wait for the thread of sync code."""
        return [self._shown(work) for work in self._replica.backlog.waiting.copy()]

    def names(self) -> list[str]:
        """Return the names of the methods that callers may call."""
        return sorted(map(self.name, self._replica.servable.public_methods()))

    def counts(self) -> dict[str, int]:
        """Return how many calls of each method have begun."""
        return {self.name(method): count for method, count in self._replica.servable.counts().items()}

    def name(self, method: str) -> str:
        """Return the name of one of its methods."""
        return name_of(self._replica.spec.record.name, self._replica.spec.deployment, method)

    def _shown(self, work: Work) -> dict[str, Any]:
        return {
            "id": id_of(work), "name": self.name(work.name), "args": "", "kwargs": "", "type": self.name(work.name),
            "hostname": self._hostname, "time_start": _wall(work.began), "acknowledged": True,
            "delivery_info": {"routing_key": work.tag.stream, "redelivered": False}, "worker_pid": os.getpid(),
        }  # fmt: skip


def id_of(work: Work) -> str:
    """Return what stands for a call in the place of a task's id: its request's id, with the step of a graph."""
    header = work.header
    return header.request_id if header.graph is None else f"{header.request_id}-{work.step}"


class _Ended(NamedTuple):
    uuid: str
    name: str
    tries: int
    began: float
    seconds: float
    state: str
    failure: bytes


class CallEvents:
    """Sends Celery's events of a replica's calls while that is enabled; from the thread of remote control only."""

    def __init__(self, app: Celery, replica: Replica, view: CallView, hostname: str) -> None:
        self._app = app
        self._replica = replica
        self._view = view
        self._hostname = hostname
        self._dispatcher: EventDispatcher | None = None
        self._ended: deque[_Ended] = deque(maxlen=KEPT_CALLS)
        self._announced: set[str] = set()
        self._send_at = self._beat_at = 0.0

    @property
    def is_enabled(self) -> bool:
        return self._replica.committer.watcher is not None

    def enable(self) -> bool:
        """Send events from now on; return whether they were not sent before."""
        was, self._replica.committer.watcher = self.is_enabled, self._note
        return not was

    def disable(self) -> bool:
        """Send no more events; return whether they were sent before."""
        was = self.is_enabled
        self._replica.committer.watcher = None
        self._ended.clear()
        self._announced.clear()
        self.disconnect()
        return was

    def disconnect(self) -> None:
        """Forget a connection, which was lost; the next ``send`` takes the one that it is given."""
        self._dispatcher = None

    def send(self, connection: Any, at_once: bool = False) -> None:
        """Send what has happened, if events are enabled and it is time."""
        now = time.monotonic()
        if not self.is_enabled or (now < self._send_at and not at_once):
            return
        self._send_at = now + SEND_EVERY_S
        dispatcher = self._dispatcher
        if dispatcher is None:
            dispatcher = self._dispatcher = EventDispatcher(
                connection, self._hostname, app=self._app, buffer_while_offline=False, buffer_group=["task"],
                buffer_limit=_EVENTS_PER_MESSAGE,
            )  # fmt: skip
            self._send_of_worker("worker-online")
        if now >= self._beat_at or at_once:
            self._beat_at = now + _HEARTBEAT_S
            self._send_of_worker("worker-heartbeat")
        running = self._replica.invoker.running()  # first: of those that end meanwhile the next turn tells
        for ended in [self._ended.popleft() for _ in range(len(self._ended))]:
            self._send_end(dispatcher, ended)
        for work in running:
            self._announce(dispatcher, id_of(work), self._view.name(work.name), _wall(work.began), work.tries)
        self._announced &= {id_of(work) for work in running}
        dispatcher.flush()

    def send_last(self, connection: Any) -> None:
        """Send what has not been sent, and that this replica ends, if events are enabled."""
        if self.is_enabled:
            self.send(connection, at_once=True)
            self._send_of_worker("worker-offline")

    def _send_of_worker(self, kind: str) -> None:
        assert self._dispatcher is not None
        processed, active = sum(self._view.counts().values()), len(self._replica.invoker.running())
        self._dispatcher.send(
            kind, freq=_HEARTBEAT_S, processed=processed, active=active, loadavg=os.getloadavg(),
            **worker_state.SOFTWARE_INFO,
        )  # fmt: skip

    def _announce(self, dispatcher: EventDispatcher, uuid: str, name: str, began: float, tries: int) -> None:
        if uuid not in self._announced:
            self._announced.add(uuid)
            about = {"name": name, "args": "", "kwargs": "", "root_id": uuid.partition("-")[0], "parent_id": None}
            dispatcher.send("task-received", uuid=uuid, timestamp=began, retries=tries, eta=None, expires=None, **about)
            dispatcher.send("task-started", uuid=uuid, timestamp=began)

    def _send_end(self, dispatcher: EventDispatcher, ended: _Ended) -> None:
        self._announce(dispatcher, ended.uuid, ended.name, ended.began, ended.tries)
        about: dict[str, Any] = {"uuid": ended.uuid, "timestamp": ended.began + ended.seconds}
        kind = _TYPES.get(ended.state, "task-revoked")
        if ended.failure:
            failure = Failure.decode(ended.failure)
            text = f"{failure.type}({failure.message!r})"
            dispatcher.send(kind, **about, exception=text, traceback=failure.traceback)
        elif kind == "task-revoked":
            is_late = ended.state == State.EXPIRED
            dispatcher.send(kind, **about, terminated=not is_late, signum=None, expired=is_late)
        else:
            dispatcher.send(kind, **about, result="", runtime=ended.seconds)

    def _note(self, work: Work, state: str, payload: bytes) -> None:
        """Keep the end of a call until it is sent; on the loop's thread."""
        seconds = time.monotonic() - work.began if work.began else 0.0
        name, began = self._view.name(work.name), time.time() - seconds
        failure = payload if state in (State.FAILED, POSTPONED) else b""
        self._ended.append(_Ended(id_of(work), name, work.tries, began, seconds, state, failure))


def _wall(monotonic: float) -> float:
    return time.time() - (time.monotonic() - monotonic) if monotonic else time.time()
