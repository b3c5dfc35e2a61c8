"""What happens to the calls of replicas and versions that are no more."""

from __future__ import annotations

from qserve.base import failpoints
from qserve.base.keys import Keys
from qserve.broker import functions
from qserve.broker.connection import Client, broker_errors
from qserve.wire.application import ApplicationRecord
from qserve.wire.sealing import DEATH_LIMIT, DELETED, LOST


class Takeover:
    """Hands calls over at one broker."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    def hand_over(self, stream: str, consumer: str) -> int:
        """Put what a dead replica held back on the queue; answers how many calls that were.

        Crash before the call: the entries stay pending and the next sweep finds them. Crash after: they are
        on the queue as new entries.
        """
        if failpoints.ARMED:
            failpoints.hit("supervisor.before_handover")
        prefix, personal = self._keys.request(""), self._keys.personal(stream, consumer)
        total = 0
        for source in (stream, personal):
            while True:
                with broker_errors():
                    command = functions.reclaim(source, stream, consumer, DEATH_LIMIT, LOST, prefix)
                    moved = int(self._client.execute_command(*command))
                total += moved
                if moved < functions.RECLAIM_COUNT:
                    break
        with broker_errors():
            command = functions.disband(personal, stream, self._keys.models_of(stream), consumer, prefix)
            return total + int(self._client.execute_command(*command))

    def wake(self, stream: str) -> None:
        """Put the calls of a queue whose wait for another try is over back on it."""
        with broker_errors():
            self._client.execute_command(*functions.wake(self._keys.delayed_of(stream), stream))

    def retire(self, record: ApplicationRecord, force: bool) -> bool:
        """Remove a version's queues once nothing of it is under way; ``force`` fails what is left.

        Returns:
          Whether the queues are gone.
        """
        streams = [record.stream(self._keys, name) for name, one in record.deployments.items() if one.replicated]
        with broker_errors():
            for stream in streams[:]:
                streams.append(self._keys.delayed_of(stream))
                held = self._client.hgetall(self._keys.models_of(stream))
                streams += [own.decode() for field, own in held.items() if field.startswith(b"s:")]
            command = functions.retire(streams, force, DELETED, self._keys.request(""))
            return int(self._client.execute_command(*command)) == 1
