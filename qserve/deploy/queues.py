"""What is in the queues of deployments: calls that wait, run, or are delayed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from qserve.broker.connection import if_permitted
from qserve.broker.load import delayed_in, loads_of
from qserve.deploy.installation import Installation
from qserve.deploy.named import versions_named
from qserve.wire.fleet import Wish


@dataclass(frozen=True)
class QueueStatus:
    """The queue of one deployment of one version.

    Parameters:
      waiting: Calls that no replica has fetched.
      running: Calls that replicas hold.
      oldest_s: For how many seconds the oldest of those that wait has waited.
      delayed: Calls that are tried again later, or wait for a result.
      is_paused: Whether its replicas take no calls.
    """

    application: str
    deployment: str
    version: str
    waiting: int
    running: int
    oldest_s: float
    delayed: int
    is_paused: bool


def queues_of(installation: Installation, app: str | None = None) -> list[QueueStatus]:
    """Return the queues of an application, or of all; of an old version only those that are not empty.

    Raises:
      UsageProblem: There is no application of that name.
      BrokerUnavailable: The broker does not reply.
    """
    registry, keys = installation.registry, installation.keys
    found = []
    for name in sorted(registry.names()) if app is None else [app]:
        versions = versions_named(installation, name)
        current = {record.version for record in versions}
        versions += [record for record in registry.old(name) if record.version not in current]
        wishes = if_permitted(partial(installation.fleet.wishes, name))
        places = [(one, deployment) for one in versions for deployment in one.replicated]
        streams = [record.stream(keys, deployment) for record, deployment in places]
        loads = loads_of(installation.client, streams)
        delays = delayed_in(installation.client, [keys.delayed_of(stream) for stream in streams])
        for (record, deployment), load, delayed in zip(places, loads, delays, strict=True):
            if record.version in current or any((*load, delayed)):
                is_paused = wishes.get(deployment, Wish()).is_paused
                found.append(QueueStatus(name, deployment, record.version, *load, delayed, is_paused))
    return found
