"""Reads the load of deployments from the broker, for decisions on their replicas."""

from __future__ import annotations

from collections.abc import Sequence

from qserve.broker.connection import Client, broker_errors
from qserve.broker.load import read_queues
from qserve.fleet.values import Load


def read_loads(client: Client, queues: Sequence[str], at: float) -> list[Load]:
    """Return how many calls wait and run in each queue, in one command.

    A delayed retry is not load. Nothing is made up for what cannot be read: that would take replicas away.

    Parameters:
      at: The time now, for ``Load.at``.

    Raises:
      BrokerError: The broker is away, refuses the command, or its functions are those of an older qserve.
    """
    if not queues:
        return []
    with broker_errors():
        return [Load(at, *found) for found in read_queues(client, queues)]
