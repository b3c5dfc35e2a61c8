"""The figures of a contender under a fault, and the table of all figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from peers.faults import Fault
from peers.ledger import Ledger
from peers.load import Call


@dataclass(frozen=True)
class Figures:
    """The figures of all rounds together.

    Parameters:
      sent: The number of requests.
      failed: The number of requests without a correct response in time, by reason.
      lost: Failed requests that were started or may have been accepted, and never reached their last step; without
        those that were refused before anything started (an HTTP error, no connection).
      ran_twice: The number of steps that were started more than once.
      gaps_s: For each round, the longest time between two correct responses.
      normal_s: For each round, the time from the fault until all responses came in normal time, from as many replicas
        as before; None if that took too long.
      caught: The number of calls that the killed processes were running.
      answered_s: For those calls that still had a response, the time from the kill.
      restarts: How often the service manager restarted a process, those that the fault killed included.
    """

    contender: str
    fault: str
    sent: int
    failed: dict[str, int]
    lost: int
    ran_twice: int
    gaps_s: list[float]
    normal_s: list[float | None]
    caught: int
    answered_s: list[float]
    restarts: int


def figures_of(
    contender: str, fault: str, calls: Sequence[Call], ledger: Ledger, rounds: Sequence[Fault], restarts: int
) -> Figures:
    """Count, after every request has its response or was given up."""
    failed = [call for call in calls if not call.ok]
    begun, finished = {line.id for line in ledger.lines()}, ledger.finished()
    caught = {id: one for one in rounds for id in _caught_by(one, ledger)}
    answers = {call.id: call.end for call in calls if call.ok and call.end is not None}
    ends = [*(one.began for one in rounds[1:]), max(call.due for call in calls)]
    return Figures(
        contender=contender,
        fault=fault,
        sent=len(calls),
        failed=dict(Counter(call.outcome for call in failed)),
        lost=sum(1 for call in failed if call.id not in finished and not (_refused(call) and call.id not in begun)),
        ran_twice=ledger.ran_twice({call.id for call in calls}),
        gaps_s=[_longest_gap(answers.values(), one.began, end) for one, end in zip(rounds, ends, strict=True)],
        normal_s=[None if one.normal_at is None else one.normal_at - one.began for one in rounds],
        caught=len(caught),
        answered_s=[answers[id] - one.began for id, one in caught.items() if id in answers],
        restarts=restarts,
    )


def not_applicable(contender: str, fault: str) -> Figures:
    """Return the figures of a contender into which the fault cannot be injected."""
    return Figures(
        contender, fault, 0, failed={}, lost=0, ran_twice=0, gaps_s=[], normal_s=[], caught=0, answered_s=[], restarts=0
    )


def _refused(call: Call) -> bool:
    """Return whether the request was refused at once."""
    return call.outcome == "refused" or call.outcome.startswith("HTTP")


def _caught_by(fault: Fault, ledger: Ledger) -> set[str]:
    """Return the requests whose middle step a killed process had started, and whose last step had not started."""
    lines = ledger.lines()
    begun = {line.id for line in lines if line.pid in fault.killed and line.at <= fault.began}
    followed = {line.id for line in lines if line.step == "last" and line.at <= fault.began}
    return begun - followed


def _longest_gap(ends: Iterable[float], began: float, until: float) -> float:
    times = [began, *sorted(end for end in ends if began <= end < until), until]
    return max(b - a for a, b in pairwise(times))


def table(rows: Sequence[Figures], labels: dict[str, str], faults: dict[str, str]) -> str:
    """Return a Markdown table, fault by fault."""
    columns = ["fault", "contender", "failed of sent", "lost", "steps run twice"]
    columns += ["longest gap s", "normal again s", "killed calls"]
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    for fault, words in faults.items():
        for row in (row for row in rows if row.fault == fault):
            lines.append(f"| {words} | {labels[row.contender]} | {' | '.join(_cells(row))} |")
            words = ""
    return "\n".join(lines)


def _cells(row: Figures) -> list[str]:
    if not row.sent:
        return ["n/a"] * 6
    known = [one for one in row.normal_s if one is not None]
    normal = f"{median(known):.2f}" if known else "not while it was watched"
    if known and len(known) < len(row.normal_s):
        normal += f"; not in {len(row.normal_s) - len(known)} of {len(row.normal_s)} rounds"
    if row.caught:
        killed = f"{len(row.answered_s)} of {row.caught} answered"
        if row.answered_s:
            killed += f", after {median(row.answered_s):.2f} s, {max(row.answered_s):.2f} s at most"
    else:
        killed = ""
    failed = sum(row.failed.values())
    return [f"{failed} of {row.sent}", str(row.lost), str(row.ran_twice), f"{max(row.gaps_s):.2f}", normal, killed]
