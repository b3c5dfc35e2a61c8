"""What must be true after every fault, whatever it was."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from ledger import NODES
from load import Call, Load, percentile
from processes import PATIENCE_S, wait_until
from stacks import Stack

from qserve.base.keys import GROUP

LIVES_WITH_ITS_APP = (":q:", ":apps", ":changes", ":a:", ":code:", ":epoch", ":hosts", ":plan", ":drains", ":s:", ":w:")
"""Keys that have no time to live; see ``qserve/base/keys.py``."""
_RECORD = re.compile(r"^(?=\d\d:\d\d:\d\d |\[\d{4}-|\$ )", re.MULTILINE)
"""Where a record of a log begins; its traceback belongs to it."""
_BAD = re.compile(r"^Traceback|\bERROR\b|\bCRITICAL\b", re.MULTILINE)
FILES_MORE = 8
"""Files that a process may have open beyond those of its start: connections that are made when first needed."""
_AFTER_DEADLINE_S = 10.0
"""The promise is a second; a busy machine may need more until the caller's thread has seen the end."""
_SLOWER = 10
_NOTICED_S = 1.0


def check(
    stack: Stack,
    calls: Iterable[Call],
    *,
    load: Load | None = None,
    reruns: int = 0,
    may_fail: Iterable[str] = (),
    may_log: Iterable[str] = (),
    deadline_s: float = PATIENCE_S,
) -> None:
    """Check all invariants.

    Parameters:
      calls: Every request of the test, each of which has ended.
      load: The background load, whose calls outside the fault are held against each other in time.
      reruns: The most executions beyond one of each node: victims of the fault times what each ran at once.
      may_fail: Ids of requests whose failure is part of the row.
      may_log: Patterns of log records (tracebacks included) that are part of the row.
      deadline_s: Of each request.
    """
    calls = list(calls)
    _each_request_ended_once(calls, deadline_s)
    _answers_are_right(calls, set(may_fail))
    _effects_happened_once(stack, calls)
    _runs_again_are_bounded(stack, calls, reruns)
    _nothing_is_left_at_the_broker(stack)
    _readers_are_the_replicas(stack)
    _logs_are_clean(stack, [re.compile(pattern) for pattern in may_log])
    if load is not None:
        _others_did_not_notice(load)


def _each_request_ended_once(calls: list[Call], deadline_s: float) -> None:
    """I1: a final state, exactly one, no later than a second after the deadline."""
    assert calls
    wrong = [call for call in calls if call.ends != 1]
    assert not wrong, f"{len(wrong)} of {len(calls)} requests did not end exactly once: {wrong[:3]}"
    late = [call for call in calls if call.took_s > deadline_s + _AFTER_DEADLINE_S]
    assert not late, f"{len(late)} requests ended after their deadline: {late[:3]}"


def _answers_are_right(calls: list[Call], may_fail: set[str]) -> None:
    """I8 and I1: what was accepted was answered, and as plain Python would have done it."""
    failed = [call for call in calls if call.accepted and not call.is_right and call.id not in may_fail]
    assert not failed, f"{len(failed)} of {len(calls)} accepted requests have no right answer: {failed[:3]}"
    doubtful = [call for call in calls if not call.accepted and call.answer is not None and not call.is_right]
    assert not doubtful, doubtful[:3]


def _effects_happened_once(stack: Stack, calls: list[Call]) -> None:
    """I2: each step committed once: all that came after it saw the result of one and the same execution."""
    ids = {call.id for call in calls}
    seen = defaultdict(set)
    for line in stack.ledger.lines(node="join"):
        if line.request in ids:
            seen[line.request].add(line.detail)
    torn = {request: pairs for request, pairs in seen.items() if len(pairs) != 1}
    assert not torn, f"steps of these requests had their effects twice: {torn}"
    ends = {line.attempt for line in stack.ledger.lines(event="end")}
    for call in calls:
        if call.answer is not None:
            assert call.answer["attempt"] in ends, f"{call.id} was answered by an execution that never ended"


def _runs_again_are_bounded(stack: Stack, calls: list[Call], reruns: int) -> None:
    """I3: only what the fault touched was run again; and what has an answer was run at all."""
    ids = [call.id for call in calls]
    surplus = stack.ledger.surplus(ids)
    assert surplus.total() <= reruns, f"{surplus.total()} executions too many, {reruns} allowed: {surplus}"
    started = {(line.request, line.node) for line in stack.ledger.lines()}
    for call in calls:
        if call.is_right:
            assert all((call.id, node) in started for node in NODES), call


def _nothing_is_left_at_the_broker(stack: Stack) -> None:
    """I4: queues are empty, nothing is pending, and no key lives for ever that should not."""
    client = stack.broker.client

    def left() -> dict[str, tuple[int, int]]:
        found = {stream: (client.xlen(stream), client.xpending(stream, GROUP)["pending"]) for stream in stack.streams()}
        return {stream: counts for stream, counts in found.items() if counts != (0, 0)}

    try:
        wait_until(lambda: not left(), description="all queues are empty")
    except AssertionError as error:
        raise AssertionError(f"{error}; (length, pending) of those that are not: {left()}") from None
    for key in client.scan_iter(stack.keys._name("*").replace("[", "\\["), count=1000):
        text = key.decode()
        if not any(part in text for part in LIVES_WITH_ITS_APP):
            assert client.pttl(key) != -1, f"{text} has no time to live"


def _readers_are_the_replicas(stack: Stack) -> None:
    """I5: as many replicas as are wanted, and the broker knows no other reader."""

    def agree() -> bool:
        names = {one.name for one in stack.replicas()}
        return len(names) == 3 * stack.replicas_wanted and set().union(*stack.consumers().values()) == names

    try:
        wait_until(agree, description="readers are the replicas")
    except AssertionError as error:
        names = sorted(one.name for one in stack.replicas())
        raise AssertionError(f"{error}; replicas: {names}; readers: {stack.consumers()}") from None


def _logs_are_clean(stack: Stack, allowed: list[re.Pattern[str]]) -> None:
    """I6: no error that is not part of the row, and no file left open."""
    logs = stack.new_logs()
    bad = [
        record
        for record in _RECORD.split(logs)
        if _BAD.search(record) and not any(pattern.search(record) for pattern in allowed)
    ]
    assert not bad, "\n".join(["the logs hold errors:", *bad[:10], "", "all of it:", logs[-6000:]])
    assert all(growth <= FILES_MORE for growth in stack.fd_growth().values()), stack.fd_growth()


def _others_did_not_notice(load: Load) -> None:
    """I7: requests outside the fault had no errors, and took about as long after it as before."""
    began, ended = load.faults[0][0], load.faults[-1][1]
    before = [call for call in load.calls if call.ended_at < began]
    after = [call for call in load.calls if call.sent_at > ended]
    assert len(before) > 20 and len(after) > 20, (len(before), len(after))
    failed = [call for call in before + after if not call.is_right]
    assert not failed, failed[:3]
    # the median: on a busy machine its own pauses are in every 99th percentile
    usual_s, now_s = (percentile([call.took_s for call in calls], 0.5) for calls in (before, after))
    assert now_s <= max(_SLOWER * usual_s, _NOTICED_S), (
        f"it took {usual_s * 1000:.0f} ms, and now {now_s * 1000:.0f} ms"
    )
