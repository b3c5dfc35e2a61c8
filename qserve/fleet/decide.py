"""Computes the number of replicas from the load, by Ray Serve's formula, factors and delays. It does no I/O."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from math import ceil

from qserve.fleet.values import Decision, Load
from qserve.wire.application import Scaling

_SHORTEST_S = 1.0
"""The current load is that of this many seconds, so that a single reading decides nothing."""
_LATE_S = 1.0
"""While the oldest call has waited longer than this, no replica is removed."""
_KEPT = 600
"""About this many loads are kept, however long the look-back is."""
AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": lambda totals: sum(totals) / len(totals),
    "max": max,
    "min": min,
}


def decide(
    history: Sequence[Load],
    current: int,
    scaling: Scaling,
    before: Decision | None,
    now: float,
    asked: float | None = None,
) -> Decision:
    """Return how many replicas a deployment should have.

    More are wanted by the load of the last ``upscale_delay_s`` (at least a second), fewer by that and the load of the
    whole look-back; neither comes while the last second asks for the contrary. A change of ``min_replicas`` or
    ``max_replicas`` counts at once, and so does a call for a deployment without replicas.

    Parameters:
      history: As ``remember`` keeps it, the newest load last. An empty one changes nothing.
      current: How many it is to have now.
      before: The last decision; None for the first one.
      now: By the clock of ``Load.at``.
      asked: What a policy of the user's asks for, which replaces the load.
    """
    reason = "" if before is None else before.reason
    within = _bounded(current, scaling)
    if within != current:
        return Decision(within, f"between {scaling.min_replicas} and {scaling.max_replicas} replicas are allowed")
    second, recent, whole = (
        _since(history, now - min(scaling.look_back_period_s, seconds))
        for seconds in (_SHORTEST_S, max(_SHORTEST_S, scaling.upscale_delay_s), scaling.look_back_period_s)
    )
    if not second:
        return Decision(current, reason)
    newest = second[-1]
    if current == 0 and newest.waiting + newest.running:
        count = max(_from_zero(scaling), _bounded(asked or 0, scaling))
        return Decision(count, f"{_calls(newest.waiting + newest.running)} for a deployment without replicas")
    if asked is None:
        lately, up, looked_back = (
            desired(_total(loads, scaling), current, scaling) for loads in (second, recent, whole)
        )
    else:
        lately = up = looked_back = _moved(asked, current, scaling)
    down = max(lately, up, looked_back, min(current - 1, 1))  # the last one goes alone
    above, below = (None, None) if before is None else (before.above_since, before.below_since)
    if up > current:
        above = now if above is None else above
        if now - above < scaling.upscale_delay_s or lately <= current:
            return Decision(current, reason, above_since=above)
        return Decision(up, _why(_total(recent, scaling), current, scaling, asked))
    if down < current:
        below = now if below is None else below
        is_known = asked is not None or history[0].at <= now - scaling.look_back_period_s
        is_needed = newest.oldest_s > _LATE_S or (down == 0 and newest.waiting + newest.running > 0)
        if now - below < _delay_down_s(down, scaling) or not is_known or is_needed:
            return Decision(current, reason, below_since=below)
        return Decision(down, _why(_total(whole, scaling), current, scaling, asked))
    return Decision(current, reason)


def desired(total: float, current: int, scaling: Scaling) -> int:
    """Return the number of replicas for so many ongoing calls by Ray Serve's formula, without delays."""
    if current == 0:
        return _from_zero(scaling) if total else _bounded(0, scaling)
    return _moved(total / scaling.target_ongoing_requests, current, scaling)


def looked_back(history: Sequence[Load], scaling: Scaling, now: float) -> tuple[float, float]:
    """Return the numbers of waiting and of running calls, aggregated over the look-back."""
    aggregate = AGGREGATES[scaling.aggregation_function]
    loads = _since(history, now - scaling.look_back_period_s)
    return (
        (aggregate([load.waiting for load in loads]), aggregate([load.running for load in loads])) if loads else (0, 0)
    )


def remember(history: list[Load], load: Load, scaling: Scaling) -> None:
    """Add the newest load, and drop those that no decision needs any more."""
    if history and history[-1].at < load.at - scaling.look_back_period_s:
        history.clear()  # nothing was read for so long that the loads before say nothing of it
    if len(history) > 1 and load.at - history[-2].at < scaling.look_back_period_s / _KEPT:
        history.pop()
    history.append(load)
    # one that is older than the look-back shows that all of it is known
    del history[: max(0, _place(history, load.at - scaling.look_back_period_s) - 1)]


def _moved(asked: float, current: int, scaling: Scaling) -> int:
    """Return the count after one step towards the desired number; the factors make the step longer or shorter."""
    if current == 0:
        return _bounded(asked, scaling)  # there is nothing that a factor could be a part of
    factor = scaling.upscaling_factor if asked > current else scaling.downscaling_factor
    count = _bounded(round(current + factor * (asked - current), 9), scaling)  # 3.0000000000000004 replicas are three
    if count == current and asked <= current - 1:
        return _bounded(count - 1, scaling)  # else a small factor would never let the last one go
    return count


def _from_zero(scaling: Scaling) -> int:
    return _bounded(max(1, scaling.upscaling_factor), scaling)


def _bounded(count: float, scaling: Scaling) -> int:
    return ceil(max(scaling.min_replicas, min(scaling.max_replicas, count)))  # the count may be infinite before


def _delay_down_s(count: int, scaling: Scaling) -> float:
    to_zero_s = scaling.downscale_to_zero_delay_s
    return scaling.downscale_delay_s if count or to_zero_s is None else to_zero_s


def _place(history: Sequence[Load], at: float) -> int:
    return bisect_left(history, at, key=lambda load: load.at)


def _since(history: Sequence[Load], at: float) -> Sequence[Load]:
    return history[_place(history, at) :]


def _total(loads: Sequence[Load], scaling: Scaling) -> float:
    return AGGREGATES[scaling.aggregation_function]([load.waiting + load.running for load in loads])


def _why(total: float, current: int, scaling: Scaling, asked: float | None) -> str:
    if asked is not None:
        return f"its policy asks for {asked:g}"
    replicas = "1 replica" if current == 1 else f"{current} replicas"
    return f"{_calls(total)} ongoing at {replicas}, target {scaling.target_ongoing_requests:g} each"


def _calls(total: float) -> str:
    return f"{round(total, 1):g} call{'' if total == 1 else 's'}"
