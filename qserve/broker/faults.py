"""Deployments that cannot be started: supervisors note them, so that callers get an error and need not wait."""

from __future__ import annotations

from typing import Any

from redis import Redis

from qserve.base.keys import POOL_TTL_MS, Keys
from qserve.broker.connection import broker_errors, without_strangers
from qserve.exceptions import PayloadError
from qserve.wire.replies import each, text
from qserve.wire.sealing import Seal
from qserve.wire.status import FAILED, ReplicaStatus, report_place


class Faults:
    """The deployment of each application that cannot be started, as this process has read it last.

    There is no key as long as nothing is wrong. It is read together with what a process reads anyway: the registry by
    callers, its own beat by a gateway, its own report by a replica.

    Attributes:
      known: Reports without a replica's name, by application; changed in place.
    """

    def __init__(self, client: Redis, keys: Keys, seal: Seal) -> None:
        self.key: str = keys.faults
        self.known: dict[str, ReplicaStatus] = {}
        self._client = client
        self._seal = seal
        self._stored: Any = {}

    def take_in(self, stored: Any) -> None:
        """Take in the reply to HGETALL of ``key``; an error leaves everything as it was."""
        if stored == self._stored or not isinstance(stored, dict):
            return
        self._stored, found = stored, dict(each(stored.items(), self._read))
        self.known.update(found)
        for app in self.known.keys() - found.keys():
            del self.known[app]

    def _read(self, item: tuple[bytes, bytes]) -> tuple[str, ReplicaStatus]:
        app = text(item[0], "the name of an application")
        fault = ReplicaStatus.decode(self._seal.open(report_place(app, ""), item[1]))
        if fault.state != FAILED or fault.name:
            raise PayloadError(f"the stored failure report of application {app!r} is not valid")
        return app, fault

    def note(self, app: str, fault: ReplicaStatus | None) -> None:
        """Note that a deployment cannot be started, or with None that all of them can.

        Crash before it: another supervisor of the application notes it, or the next one. Crash after: it holds until
        the reports that it was made from do, or until a supervisor sees a replica run.
        """

        def store() -> Any:
            pipe = self._client.pipeline(transaction=True)
            if fault is None:
                pipe.hdel(self.key, app)
            else:
                pipe.hset(self.key, app, self._seal.seal(report_place(app, ""), fault.encode()))
            return pipe.pexpire(self.key, POOL_TTL_MS).hgetall(self.key).execute()[-1]

        with broker_errors():
            self.take_in(without_strangers(self._client, store, self.key))
