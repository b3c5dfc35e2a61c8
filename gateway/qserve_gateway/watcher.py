"""Keeps the route table true to the registry, and goes on with the old one while the broker is away."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from logging import DEBUG, WARNING

from qserve.base.keys import BEAT_TTL_MS
from qserve.base.log import get_logger
from qserve.broker.connection import BLOCK_S, broker_errors, process_name
from qserve.broker.registry import NO_CHANGE
from qserve.calls.client import ClientPlane
from qserve.exceptions import BrokerError, BrokerStateLost, BrokerUnsafe, PayloadError
from qserve.wire.application import ApplicationRecord
from qserve_gateway.routes import RouteTable

log = get_logger(__name__)

_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.03, 2.0
_EAGER_TRIES = 100
_FOREVER_S = float("inf")
LOOK_AGAIN_S = 60.0
"""How often the broker's settings are looked at again; every two seconds while they are wrong."""


class Watcher:
    """Follows the registry's changes.

    Parameters:
      plane: Its registry is read; it is told of every application, so that no request has to ask.
      check: Called before the broker is first used; raises BrokerError when it must not be.
      look_again: Called every ``LOOK_AGAIN_S``; raises BrokerUnsafe when it must not be used any more.
    """

    def __init__(
        self,
        plane: ClientPlane,
        check: Callable[[], None] = lambda: None,
        look_again: Callable[[], None] = lambda: None,
    ) -> None:
        self.table: RouteTable | None = None
        self._plane = plane
        self._check = check
        self._look_again = look_again
        self._looked_at = time.monotonic()
        self._unsafe: BrokerUnsafe | None = None
        self._seen = ""
        self._lost = False
        self._beat = plane.keys.gateway(process_name())
        self._stop = threading.Event()

    def refresh(self) -> None:
        """Read all applications and tell the broker which change is served now.

        Raises:
          BrokerUnavailable: The broker does not answer; the table stays as it was.
        """
        # the id is read first: a change in between is then seen again, not missed
        newest = self._plane.registry.last_change()
        records = list(self._readable())
        for record in records:
            self._plane.learn(record, for_s=_FOREVER_S)
        self.table = RouteTable.of(records)
        self._seen, self._lost = newest, False
        self._publish()

    def current(self) -> RouteTable | None:
        """The routes that are served now; None until they are known.

        Raises:
          BrokerStateLost: The applications that they lead to are no more.
          BrokerUnsafe: What is accepted now might be thrown away.
        """
        if self._unsafe is not None:
            raise BrokerUnsafe(str(self._unsafe))
        if self._lost:
            raise BrokerStateLost("the broker has lost all that was deployed")
        return self.table

    def _readable(self) -> Iterator[ApplicationRecord]:
        registry = self._plane.registry
        for name in registry.names():
            try:
                record = registry.find(name)
            except PayloadError as error:
                log.error("application %r is not served: %s", name, error)
                continue
            if record is not None:
                yield record

    def tick(self) -> None:
        """Wait for a change, at most ``BLOCK_S``, and follow it.

        Raises:
          BrokerUnavailable: The broker does not answer; the table stays as it was.
        """
        if self.table is None:
            self._check()
            self.refresh()
            return
        self._look_over()
        registry = self._plane.registry
        if registry.wait_for_change(self._seen, BLOCK_S) != self._seen:
            self.refresh()
        elif self._seen != NO_CHANGE == registry.last_change():
            self._note_loss()
        else:
            self._publish()

    def _look_over(self) -> None:
        now = time.monotonic()
        if self._unsafe is None and now - self._looked_at < LOOK_AGAIN_S:
            return
        self._looked_at = now
        try:
            self._look_again()
        except BrokerUnsafe as error:
            if self._unsafe is None:
                log.error("requests are refused until the broker is set right: %s", error)
            self._unsafe = error
        else:
            if self._unsafe is not None:
                log.warning("the broker is set right; requests are accepted again")
            self._unsafe = None

    def _note_loss(self) -> None:
        if not self._lost:
            log.error("the broker has lost all that was deployed; requests are refused until it is registered again")
        self._lost = True

    def _publish(self) -> None:
        with broker_errors():
            self._plane.client.set(self._beat, self._seen, px=BEAT_TTL_MS)

    def run(self) -> None:
        """Follow the registry until ``stop``."""
        pause_s, failures = 0.0, 0
        while not self._stop.wait(pause_s):
            try:
                self.tick()
                pause_s, failures = 0.0, 0
            except BrokerError as error:
                failures += 1
                pause_s = self._pause_s(failures)
                first = pause_s > _SHORTEST_PAUSE_S >= self._pause_s(failures - 1)
                log.log(WARNING if first else DEBUG, "the routes stay as they are: %s", error)
            except Exception:
                # without routes that follow the registry a gateway is worse than useless: try on
                log.exception("the routes could not be read")
                pause_s = _LONGEST_PAUSE_S

    def _pause_s(self, failures: int) -> float:
        # a gateway and its broker are often started together: the first seconds are no outage
        patient = failures - (_EAGER_TRIES if self.table is None else 0)
        return min(_SHORTEST_PAUSE_S * 2.0 ** min(max(0, patient), 10), _LONGEST_PAUSE_S)

    def start(self) -> None:
        """Follow the registry in a thread (a greenlet in the gateway).

        The first look is made before that: a process that joins others on their port must know the routes before
        it is given its first request.
        """
        with contextlib.suppress(BrokerError):  # `run` tries again, and says so
            self.tick()
        threading.Thread(target=self.run, name="qserve-routes", daemon=True).start()

    def stop(self) -> None:
        """End ``run`` at its next wake."""
        self._stop.set()
