"""The page ``/-/queues``: how much waits and runs, for whatever scales the workers from outside."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from qserve.broker.connection import broker_errors
from qserve.broker.load import QueueLoad, read_queues
from qserve.broker.registry import ACTIVE, NEXT
from qserve.calls.client import ClientPlane
from qserve_gateway.request.environ import Refused

QUEUES_PATH = "/-/queues"
_READ_AGAIN_S = 0.5
Loads = dict[tuple[str, str], QueueLoad]
"""What is in the queues of a deployment, by application and name: those of its version and of one that is deployed."""


class Queues:
    """What is in the queues, read from the broker at most twice a second, however many ask."""

    def __init__(self, plane: ClientPlane, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._plane = plane
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._loads: Loads = {}
        self._read_again_at = 0.0

    def page(self, wanted: Mapping[str, str]) -> dict[str, Any]:
        """Return the queues of an application or a deployment, or all of them, and the sum of their calls.

        Parameters:
          wanted: The parameters ``app`` and ``deployment`` of the URL; both may be missing.

        Raises:
          Refused: There is no such deployment.
          BrokerUnavailable: The broker does not reply.
        """
        app, deployment = wanted.get("app"), wanted.get("deployment")
        queues = [
            {
                "application": name,
                "deployment": part,
                "waiting": load.waiting,
                "running": load.running,
                "ongoing": load.waiting + load.running,
                "oldest_s": round(load.oldest_s, 3),
            }
            for (name, part), load in self._current().items()
            if app in (None, name) and deployment in (None, part)
        ]
        if not queues and (app or deployment):
            what = "/".join(filter(None, (app, deployment)))
            raise Refused(f"{what!r} is not deployed here", "not_found", 404)
        return {"queues": queues, "ongoing": sum(queue["ongoing"] for queue in queues)}

    def _current(self) -> Loads:
        with self._lock:
            if self._monotonic() >= self._read_again_at:
                self._loads = self._read()
                self._read_again_at = self._monotonic() + _READ_AGAIN_S
            return self._loads

    @broker_errors()
    def _read(self) -> Loads:
        registry, keys = self._plane.registry, self._plane.keys
        streams = {
            record.stream(keys, deployment): (name, deployment)
            for name in sorted(registry.names())
            for record in registry.readable(name, ACTIVE, NEXT)
            for deployment in record.replicated
        }
        found: Loads = {}
        for key, load in zip(streams.values(), read_queues(self._plane.client, [*streams]), strict=True):
            before = found.get(key, QueueLoad())
            oldest_s = max(before.oldest_s, load.oldest_s)
            found[key] = QueueLoad(before.waiting + load.waiting, before.running + load.running, oldest_s)
        return found
