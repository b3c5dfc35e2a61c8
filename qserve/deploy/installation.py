"""One installation of qserve on a broker, as the commands and the Python API reach it."""

from __future__ import annotations

from qserve.base.keys import Keys
from qserve.base.settings import Settings
from qserve.broker.connection import Client, connect
from qserve.broker.registry import Registry
from qserve.deploy.status import ReplicaReports, ServeStatus, read_status
from qserve.wire.sealing import Seal


class Installation:
    """A client of the broker, the key names and signatures of the installation, and its registry.

    Parameters:
      settings: Name the broker, the namespace and the secret key.
      client: An open client of that broker; by default a new one, which connects when it is first used.

    Raises:
      QserveException: No broker is set, or its address is not valid.
    """

    def __init__(self, settings: Settings, client: Client | None = None) -> None:
        self.settings = settings
        self.client = connect(settings.named_broker) if client is None else client
        self.keys = Keys(settings.namespace)
        self.seal = Seal(settings.keyring)
        self.registry = Registry(self.client, self.keys, self.seal)

    def reports(self, app: str) -> ReplicaReports:
        """Return what the replicas of an application report."""
        return ReplicaReports(self.client, self.keys, app)

    def status(self) -> ServeStatus:
        """Read the status of every application.

        Raises:
          BrokerUnavailable: The broker does not reply.
        """
        return read_status(self.client, self.keys, self.registry)
