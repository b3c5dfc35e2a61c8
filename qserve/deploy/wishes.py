"""What operators want of deployments that run: that their replicas take no calls for a while."""

from __future__ import annotations

import getpass
import socket
from contextlib import suppress
from dataclasses import replace

from qserve.base.clock import clock
from qserve.deploy.installation import Installation
from qserve.deploy.named import deployments_named, versions_named
from qserve.wire.fleet import Wish


def pause(installation: Installation, app: str | None, deployment: str | None, is_paused: bool) -> dict[str, Wish]:
    """Have the replicas of a deployment, or of all of an application, take no calls, or take them again.

    Crash on the way: some deployments have changed, and the same again changes the others. Replicas know it within
    seconds; one that starts later does as well.

    Parameters:
      app: The application; None for the only one.

    Returns:
      What was wanted of each of these deployments before.

    Raises:
      UsageProblem: There is no such application or deployment; nothing was changed.
      BrokerUnavailable: The broker does not reply.
    """
    record = versions_named(installation, app)[0]
    names = deployments_named(record, deployment)
    known = installation.fleet.wishes(record.name)
    before = {name: known.get(name, Wish()) for name in names}
    changed = [name for name in names if before[name].is_paused != is_paused]
    for name in changed:
        wish = replace(before[name], is_paused=is_paused, by=_who(), at_ms=clock.stamp_ms())
        installation.fleet.wish(record.name, name, wish)
    if changed:
        installation.registry.announce(record.name)
    return {f"{record.name}/{name}": wish for name, wish in before.items()}


def _who() -> str:
    """Return who asks, for those who wonder why."""
    with suppress(OSError, KeyError, ImportError):  # a container may have no name for its user
        return f"{getpass.getuser()} on {socket.gethostname()}"
    return socket.gethostname()
