"""The rule that says which deployment holds an application up."""

from __future__ import annotations

from collections.abc import Iterable

from qserve.overview.picture import Bottleneck, Deployment
from qserve.wire.status import RUNNING

HELD_S = 0.1
"""A deployment holds nothing up before its calls wait this long: shorter waits are those of a busy system."""
FULL = 0.9
"""From this share of taken places on, replicas count as full."""


def bottleneck_of(deployments: Iterable[Deployment]) -> Bottleneck | None:
    """Return the deployment that makes calls wait longest, and why; None if none makes them wait for ``HELD_S``.

    A call that waits for a deployment has all that it needs but a place in a replica, so where calls wait is where the
    graph is held up; steps before it are not slowed down by it, and steps after it get less to do. How long calls wait
    is the age of the oldest that waits now, or the median wait of those that have begun over the last seconds,
    whichever is longer: the first sees a queue that does not move, the second calls that wait inside a replica. Of two
    deployments that make calls wait equally long, the one with more taken places is named.
    """
    delayed = [(_delay_s(one), one) for one in deployments]
    held = [(delay, one) for delay, one in delayed if delay >= HELD_S]
    if not held:
        return None
    delay, worst = max(held, key=lambda item: (item[0], item[1].utilisation))
    return Bottleneck(worst.name, delay, _why(worst))


def _delay_s(one: Deployment) -> float:
    recent_s = (one.wait_p50_ms or 0.0) / 1000 if one.waiting or one.running else 0.0
    return max(one.oldest_s if one.waiting else 0.0, recent_s)


def _why(one: Deployment) -> str:
    running = one.replicas.get(RUNNING, 0)
    if one.paused_by:
        return f"it is paused by {one.paused_by}"
    if not running:
        return "no replica of it runs" + (f": {one.message}" if one.message else "")
    if one.utilisation >= FULL:
        words = f"all {one.max_ongoing * running} places of its {_count(running, 'replica')} are taken"
        return words if running >= one.wanted else f"{words}, and {running} of {one.wanted} replicas run"
    if running < one.wanted:
        return f"only {running} of {one.wanted} replicas run"
    return f"calls come in faster than its {_count(running, 'replica')} can begin them"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
