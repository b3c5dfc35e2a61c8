"""What is counted on this host: the supervisor adds up what its replicas tell, and passes it on."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterable

from qserve.base.log import get_logger
from qserve.base.settings import Settings
from qserve.broker.connection import is_forbidden
from qserve.deploy.installation import Installation
from qserve.exceptions import BrokerError
from qserve.fleet.totals import publish, withdraw
from qserve.metrics.recorder import Recorder
from qserve.metrics.table import TABLE
from qserve.metrics.totals import Channel, Totals
from qserve.payloads.tier import TierStats
from qserve.wire.replies import warn_once
from qserve.wire.totals import Labels
from qserve_workers.supervisor.page import Page

log = get_logger(__name__)
_PUBLISH_S, _REPEAT_S = 2.0, 10.0
"""How often what was counted is stored for the gateways: while it changes, and while it does not."""


class HostMetrics:
    """Adds up what the replicas of a host have counted.

    Parameters:
      worker: The ID of this worker.
      listener: Where Prometheus is answered; None to leave that to the gateways.

    Attributes:
      told: What replicas tell by.
    """

    def __init__(
        self, settings: Settings, installation: Installation, worker: str, listener: socket.socket | None = None
    ) -> None:
        self._totals = Totals()
        self._channel = Channel(self._totals)
        self.told = self._channel.told
        self._recorder = Recorder()
        self._store = installation.client, installation.keys, installation.seal
        self._worker = worker
        self._page = None if listener is None else Page(listener, settings.metrics_prefix, self._totals)
        if listener is not None:  # replicas that outlive this process must not hold its port
            os.register_at_fork(after_in_child=listener.close)
        self._published_at = self._changes = 0.0
        self._may_publish = True

    def count(self, name: str, app: str, deployment: str, value: float = 1, **labels: str) -> None:
        """Add to a counter of this supervisor."""
        self._recorder.number(TABLE[name], application=app, deployment=deployment, **labels).add(value)

    def forget(self, replica: str) -> None:
        """Remove the gauges of a replica that has ended; what it has counted stays."""
        self._channel.receive()
        self._totals.forget(replica)

    def note_values(self, stats: Iterable[TierStats]) -> None:
        """Show what the stores of large values hold."""
        found: dict[Labels, TierStats] = {(tier.tier,): tier for tier in stats}
        self._recorder.replace(TABLE["payload_values"], {labels: tier.values for labels, tier in found.items()})
        self._recorder.replace(TABLE["payload_bytes"], {labels: tier.bytes for labels, tier in found.items()})
        oldest = {labels: round(tier.oldest_s) for labels, tier in found.items()}
        self._recorder.replace(TABLE["payload_oldest_seconds"], oldest)

    def turn(self, replicas: dict[Labels, int]) -> None:
        """Take in what was told, and answer scrapes; it waits for nothing.

        Parameters:
          replicas: How many replicas run, by application and deployment.
        """
        self._channel.receive()
        self._recorder.replace(TABLE["worker_replicas"], dict(replicas))
        added = self._recorder.take()
        if added:
            self._totals.add("", added)
        if self._page is not None:
            self._page.turn()

    @property
    def heard(self) -> int:
        """The file descriptor that can be read when a replica has told something."""
        return self._channel.heard.fileno()

    @property
    def asked(self) -> tuple[int, ...]:
        """The file descriptor that can be read when Prometheus asks, if it may ask here."""
        return () if self._page is None else (self._page.fileno(),)

    @property
    def is_busy(self) -> bool:
        """Whether Prometheus is being answered."""
        return self._page is not None and self._page.is_busy

    def receive(self) -> None:
        """Take in what was told: there is room for little."""
        self._channel.receive()

    def publish_if_due(self) -> None:
        """Store what was counted for the gateways."""
        now = time.monotonic()
        wait_s = _REPEAT_S if self._changes == self._totals.changes else _PUBLISH_S
        if not self._may_publish or now - self._published_at < wait_s:
            return
        self._published_at, self._changes = now, self._totals.changes
        try:
            if not publish(*self._store, self._worker, self._totals.snapshot(), self._page is not None):
                warn_once("the gateways do not show what is counted on this host, because it is too much: use"
                          " --metrics-port, or fewer tags")  # fmt: skip
        except BrokerError as error:
            if not is_forbidden(error.__cause__):
                raise
            self._may_publish = False
            text = "the gateways do not show what is counted on this host: %s; see its user in `qserve doctor --acl`"
            log.warning(text, error)

    def end(self) -> None:
        """Remove what was stored for the gateways, and store no more."""
        with contextlib.suppress(BrokerError):
            withdraw(*self._store, self._worker)
        self._may_publish = False

    def close(self) -> None:
        """Answer no more."""
        self._channel.close()
        if self._page is not None:
            self._page.close()
