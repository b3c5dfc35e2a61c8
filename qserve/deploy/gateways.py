"""The gateways of an installation: which change of what is deployed each of their processes has taken up."""

from __future__ import annotations

import time
from collections.abc import Callable

from qserve.base.keys import Keys
from qserve.broker.connection import Client, broker_errors
from qserve.exceptions import DeployError

SERVING_FOR_S = 10.0


def wait_for_gateways(
    client: Client, keys: Keys, change: str, processes: int, check: Callable[[], None] = lambda: None
) -> None:
    """Wait until that many processes of gateways serve what is deployed as of ``change``.

    Parameters:
      check: Called while waiting; raises when waiting has become pointless.

    Raises:
      DeployError: It took too long.
      BrokerUnavailable: The broker does not answer.
    """
    if not processes:
        return
    give_up = time.monotonic() + SERVING_FOR_S
    pattern = keys.gateway("*").replace("[", "\\[")
    while time.monotonic() < give_up:
        with broker_errors():
            seen = [client.get(key) for key in client.scan_iter(pattern, count=1000)]
        if sum(1 for one in seen if one is not None and _at_least(one, change)) >= processes:
            return
        check()
        time.sleep(0.01)
    raise DeployError(f"the gateway did not take up the application within {SERVING_FOR_S:.0f} s")


def _at_least(seen: bytes, change: str) -> bool:
    def parts(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split("-"))

    return parts(seen.decode()) >= parts(change)
