"""Report to the broker which models a replica holds: calls for them then come to it while it is free."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from qserve.base.keys import RETIRED_TTL_MS
from qserve.base.log import get_logger
from qserve.base.turns import Turns
from qserve.broker import functions
from qserve.broker.connection import group_command, group_exists, refusal
from qserve.calls.mailbox import ignore
from qserve.define.multiplexing import loaded_models, on_change
from qserve_workers.replica.plane import LoopPlane
from qserve_workers.replica.spec import ReplicaSpec

log = get_logger(__name__)
_REPEAT_S = 3600.0
"""How often the report is repeated: queue and advertisement must not expire before their replica ends."""


class ModelAdvertiser:
    """Follows the models of this process, from the first one that is loaded.

    Calls for these models come by a stream of the replica's own, which ``read_also`` has the replica read.
    """

    def __init__(self, spec: ReplicaSpec, plane: LoopPlane, read_also: Callable[[str], None]) -> None:
        self._spec = spec
        self._personal = spec.keys.personal(spec.stream, spec.name)
        self._plane = plane
        self._read_also = read_also
        self._is_open = False
        self._turns = Turns("reporting this replica's models", log, first_s=0.5, longest_s=60.0)
        self._repeat: asyncio.TimerHandle | None = None
        self._unsubscribe = on_change(lambda: plane.loop.call_soon_threadsafe(self._advertise))

    def stop(self) -> None:
        """Follow no more; the supervisor removes the advertisement when the replica is gone."""
        self._unsubscribe()
        if self._repeat is not None:
            self._repeat.cancel()

    def renew(self) -> None:
        """Create this replica's own stream again: a supervisor that missed its heartbeat has removed it."""
        if self._is_open:
            self._is_open = False
            self._plane.post(("EXISTS", self._spec.stream), self._on_existence)

    def _on_existence(self, reply: Any) -> None:
        if reply == 1:  # otherwise the version is retired, and must not come back to life
            self._advertise()
        else:
            self._is_open = True

    def _advertise(self) -> None:
        with self._turns:
            self._send_models()
        self._plan_next()

    def _plan_next(self) -> None:
        if self._repeat is not None:
            self._repeat.cancel()
        self._repeat = self._plane.loop.call_later(self._turns.pause_s or _REPEAT_S, self._advertise)

    def _send_models(self) -> None:
        # all of it leaves before the end of the call that loaded the model: the next one must find its home. The group
        # is first, because a call must never come to a stream without one.
        if not self._is_open:
            self._plane.post(group_command(self._personal), self._on_group)
        models, name = self._spec.keys.models_of(self._spec.stream), self._spec.name
        self._plane.post(functions.advertise(models, self._personal, name, RETIRED_TTL_MS, loaded_models()), ignore)

    def _on_group(self, reply: Any) -> None:
        if not group_exists(reply):
            self._turns.note(refusal(reply))
            self._plan_next()
            return
        self._is_open = True
        self._read_also(self._personal)
