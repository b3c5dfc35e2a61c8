"""What a supervisor knows of the applications, for a broker that has lost them."""

from __future__ import annotations

from qserve.base.log import get_logger
from qserve.broker.connection import Client, load_functions
from qserve.broker.registry import Registry
from qserve.exceptions import BrokerError, PayloadError
from qserve.wire.application import ApplicationRecord

log = get_logger(__name__)


class Restorer:
    """Registers again what was deployed when the broker was emptied, or began again on an empty disk.

    Requests that it had accepted are lost, and their callers are told; the next ones are served.

    Parameters:
      client: A connection to the broker.
    """

    def __init__(self, client: Client, registry: Registry) -> None:
        self._client = client
        self._registry = registry
        self._known: dict[str, tuple[ApplicationRecord, bytes]] = {}

    def remember(self, names: list[str]) -> None:
        """Take in the applications as they are registered now, with the code of those whose code travels."""
        known = {}
        for name in names:
            try:
                record = self._registry.find(name)
            except PayloadError:  # not by one of us: nothing to bring back
                continue
            if record is None:
                continue
            before = self._known.get(name)
            if before is not None and before[0].version == record.version:
                known[name] = (record, before[1])
            else:
                known[name] = (record, b"" if record.target else self._registry.code(name, record.version))
        self._known = known

    def restore(self) -> bool:
        """Register them again; whether there was anything to register, and it was permitted.

        Crash on the way: the next look finds the rest missing, or another supervisor registers it.
        """
        if not self._known:
            return False
        log.error("the broker has lost its data; what was deployed is registered again")
        try:
            load_functions(self._client)
            for record, code in self._known.values():
                self._registry.restore(record, code)
        except BrokerError as error:
            # where the role's rights end with reading, whoever deploys has to do it again
            log.error("it could not be registered again: %s; deploy it again", error)
            return False
        return True
