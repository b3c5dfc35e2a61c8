"""The figures of one contender under one fault, and the table of all of them."""

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
    """What came of all rounds together.

    Parameters:
      sent: Requests.
      failed: Those without the right answer within the client's time, by reason.
      lost: Failed ones that were begun or may have been accepted, and never came to their last step. Those that
        were refused before anything was begun (an HTTP error, no connection) are not among them.
      ran_twice: Steps that were begun more than once.
      gaps_s: For each round, the longest time between two right answers.
      normal_s: For each round, from the fault until every answer came in normal time, from as many replicas as
        before; None when that took too long to be waited for.
      caught: Calls that the killed processes were running.
      answered_s: For those of them that were answered, the time from the kill.
      restarts: How often the service manager started something again; what the fault killed is among it.
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
    """Count, once every request has its answer or was given up."""
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
    """The figures of a contender that has nothing which the fault could be done to."""
    return Figures(
        contender, fault, 0, failed={}, lost=0, ran_twice=0, gaps_s=[], normal_s=[], caught=0, answered_s=[], restarts=0
    )


def _refused(call: Call) -> bool:
    """Whether the client was told at once that its request was not taken."""
    return call.outcome == "refused" or call.outcome.startswith("HTTP")


def _caught_by(fault: Fault, ledger: Ledger) -> set[str]:
    """The requests whose middle step a killed process had begun and nobody had followed up with the last one."""
    lines = ledger.lines()
    begun = {line.id for line in lines if line.pid in fault.killed and line.at <= fault.began}
    followed = {line.id for line in lines if line.step == "last" and line.at <= fault.began}
    return begun - followed


def _longest_gap(ends: Iterable[float], began: float, until: float) -> float:
    times = [began, *sorted(end for end in ends if began <= end < until), until]
    return max(b - a for a, b in pairwise(times))


def table(rows: Sequence[Figures], labels: dict[str, str], faults: dict[str, str]) -> str:
    """One Markdown table, fault by fault."""
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
        killed += f", after {max(row.answered_s):.2f} s at most" if row.answered_s else ""
    else:
        killed = ""
    failed = sum(row.failed.values())
    return [f"{failed} of {row.sent}", str(row.lost), str(row.ran_twice), f"{max(row.gaps_s):.2f}", normal, killed]
