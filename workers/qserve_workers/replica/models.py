"""Which models a replica holds, told to the broker: calls for them then come to it while it is free."""

from __future__ import annotations

import asyncio

from qserve.base.keys import RETIRED_TTL_MS, Keys
from qserve.base.log import get_logger
from qserve.broker import functions
from qserve.broker.connection import broker_errors, create_group
from qserve.calls.submitter import ignore
from qserve.define.multiplexing import loaded_models, on_change
from qserve.exceptions import BrokerError
from qserve_workers.celery.transport import Channel
from qserve_workers.replica.replica import Replica

log = get_logger(__name__)
_AGAIN_S = 3600.0
"""How often it is said again: queue and advertisement must not end before their replica does."""


class Advertiser:
    """Follows the models of this process, from the first one that is loaded.

    Parameters:
      replica: Reads its own stream as well from then on.
      channel: Delivers what comes by that stream.
    """

    def __init__(self, replica: Replica, keys: Keys, channel: Channel) -> None:
        self._replica = replica
        self._channel = channel
        self._personal = keys.personal(replica.stream, replica.name)
        self._models = keys.models_of(replica.stream)
        self._again: asyncio.TimerHandle | None = None
        self._unsubscribe = on_change(self._changed)

    def stop(self) -> None:
        """Follow no more; the supervisor takes the advertisement down when the replica is gone."""
        self._unsubscribe()
        if self._again is not None:
            self._again.cancel()

    def _changed(self) -> None:
        self._replica.loop.call_soon_threadsafe(self._advertise)

    def renew(self) -> None:
        """Make this replica's own stream anew when it is gone: a supervisor that saw no heartbeat has disbanded it."""
        if self._personal not in self._replica.streams:
            return
        try:
            with broker_errors():
                if not self._channel.client.exists(self._replica.stream):
                    return  # a retired version must not come back to life
                self._open_stream()
        except BrokerError as error:
            log.warning("the stream of this replica's models cannot be made: %s", error)
        else:
            self._advertise()

    def _open_stream(self) -> None:
        create_group(self._channel.client, self._personal)

    def _advertise(self) -> None:
        if self._personal not in self._replica.streams:
            # the group first: a call must never come to a stream that nobody reads
            self._open_stream()
            self._channel.adopt(self._personal, self._replica.stream)
            self._replica.read_also(self._personal)
            self._replica.on_new_stream()
        command = functions.advertise(self._models, self._personal, self._replica.name, RETIRED_TTL_MS, loaded_models())
        self._replica.plane.post(command, ignore)
        if self._again is not None:
            self._again.cancel()
        self._again = self._replica.loop.call_later(_AGAIN_S, self._advertise)
