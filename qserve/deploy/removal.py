"""The end of applications and their versions: queues are removed, and requests that nobody can finish are ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from qserve.base.keys import GROUP
from qserve.base.log import get_logger
from qserve.broker import functions
from qserve.broker.connection import broker_errors, if_there, is_forbidden, without_strangers
from qserve.broker.registry import ACTIVE, NEXT
from qserve.deploy.claim import Claim
from qserve.deploy.installation import Installation
from qserve.exceptions import BrokerError
from qserve.wire import replies
from qserve.wire.application import ApplicationRecord
from qserve.wire.sealing import DELETED, REPLACED

log: Final = get_logger(__name__)
_POLL_INTERVAL_S = 0.05
_ORPHAN_FOR_S = 2.0
"""A replica whose supervisor was killed goes on for less than this, and sends heartbeats meanwhile."""


def remove(
    installation: Installation, app: str, timeout_s: float = 60.0, on_wait: Callable[[str], None] = log.info
) -> str:
    """Remove an application, and return the id of the change.

    Its workers finish what they have accepted. Where no worker is left, open requests end at once; where some have
    just disappeared, when they have not sent a heartbeat for a lease. Until then this waits while requests are open.

    Crash before the registration is removed: what no worker could finish has ended, and the application is still
    registered; remove it again. Crash after it: what no worker finishes ends at its deadline.

    Parameters:
      timeout_s, on_wait: How long to wait for a deploy of it that is under way; called once with words that say so.

    Raises:
      DeployError: That deploy did not end in time.
      BrokerError: The registration could not be removed.
    """
    registry = installation.registry
    left: list[ApplicationRecord] = []
    with Claim(installation, app, "", timeout_s, on_wait) as claim:
        records = [*registry.readable(app, ACTIVE, NEXT), *registry.old(app)]
        with _named_if_refused(app):
            for record in records:
                if _beats(installation, record) or not retire(installation, record, True, None):
                    left.append(record)
        change = claim.delete()
    with _named_if_refused(app):
        _end_unfinished(installation, left)
    return change


@contextmanager
def _named_if_refused(app: str) -> Iterator[None]:
    try:
        yield
    except BrokerError as error:
        log.warning("requests of application %r that no worker finishes end at their deadlines: %s", app, error)


def _end_unfinished(installation: Installation, left: list[ApplicationRecord]) -> None:
    """Wait until each of these versions has nothing open, or has shown that a replica of it is alive.

    That of replicas that are silent for a lease is ended.
    """
    began, lease_s = time.monotonic(), installation.settings.lease_s
    beats = {record.version: _beats(installation, record) for record in left}
    beaten_at = dict.fromkeys(beats, began)
    while left:
        for record in left[:]:
            version, now = record.version, time.monotonic()
            before, beats[version] = beats[version], _beats(installation, record)
            if any(before.get(name) != beat for name, beat in beats[version].items()):
                beaten_at[version] = now
            is_lost = not beats[version] or now - beaten_at[version] >= lease_s
            if retire(installation, record, is_lost, None) or (not is_lost and now - began > lease_s + _ORPHAN_FOR_S):
                left.remove(record)
        if left:
            time.sleep(_POLL_INTERVAL_S)


@broker_errors()
def _beats(installation: Installation, record: ApplicationRecord) -> dict[str, bytes]:
    """Return the last heartbeat of each replica that reads the version's queues; they are only compared."""
    client, keys = installation.client, installation.keys
    names = [
        replies.shown(name)
        for queue in queues_of(installation, record)
        for name in replies.consumer_names(if_there(partial(client.xinfo_consumers, queue, GROUP)))
    ]
    beats: Any = client.mget([keys.beat(name) for name in names]) if names else []
    return {name: beat for name, beat in zip(names, beats, strict=True) if beat is not None}


def queues_of(installation: Installation, record: ApplicationRecord) -> dict[str, str]:
    """Return the queues of a version, each with its deployment."""
    return {record.stream(installation.keys, name): name for name in record.replicated}


def is_idle(installation: Installation, record: ApplicationRecord) -> bool | None:
    """Return whether no call of a version waits or runs; None where the broker's ACL forbids the question.

    What is left of a request that has ended may be taken for a call.
    """
    pipe = installation.client.pipeline(transaction=False)
    for queue in queues_of(installation, record):
        pipe.xlen(queue).zcard(installation.keys.delayed_of(queue))
    with broker_errors():
        lengths: list[Any] = pipe.execute(raise_on_error=False)
    if any(is_forbidden(length) for length in lengths):
        return None
    return all(length == 0 for length in lengths)


@broker_errors()
def retire(
    installation: Installation, record: ApplicationRecord, force: bool, active: ApplicationRecord | None
) -> bool:
    """Remove a version's queues once no call is open; return whether it did.

    With ``force`` those that are open go on in the ``active`` version, or fail where it cannot finish them. The active
    version itself stays.
    """
    if active is not None and active.version == record.version:
        # the caller does not know yet what has replaced it: calls would be moved to where they are removed
        return False
    client, keys = installation.client, installation.keys
    queues, prefix = queues_of(installation, record), keys.request("")
    streams = [*queues]
    for stream in queues:
        models = keys.models_of(stream)
        held = without_strangers(client, partial(client.hgetall, models), models)
        streams += [keys.delayed_of(stream), *replies.personal_streams(held, stream)]
    if active is None:
        command = functions.retire(streams, force, DELETED, prefix)
    else:
        now = {name: queue for queue, name in queues_of(installation, active).items()}
        following = {queue: now[name] for queue, name in queues.items() if name in now}
        same, other_graphs = active.has_code_of(record), record.other_graphs(active)
        command = functions.retire(streams, force, REPLACED, prefix, same, following, other_graphs)
    return replies.number(without_strangers(client, partial(client.execute_command, *command), *streams)) == 1
