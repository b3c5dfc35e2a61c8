"""Every named place, and everything that can happen there: the invariants hold."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from invariants import check
from load import Load
from processes import Process, wait_until
from stacks import Stack, kill

IN_GATEWAY = ("submit.before_send", "submit.after_send", "reply.before_wait", "gateway.after_submit")
IN_REPLICA = (
    "fetch.after_read", "call.before", "call.after", "commit.before_send", "commit.after_send", "beat.before",
    "drain.mid",
)  # fmt: skip
IN_LEADER = ("worker.after_offer", "worker.after_plan", "lead.before_renew", "lead.before_assign", "lead.after_assign")
IN_SUPERVISOR = ("sweep.mid", "supervisor.after_fork", "supervisor.before_handover", *IN_LEADER)
NTH = {
    "supervisor.after_fork": 7, "beat.before": 1, "drain.mid": 1, "supervisor.before_handover": 1,
    "worker.after_offer": 3, "worker.after_plan": 2, "lead.before_assign": 2, "lead.after_assign": 2,
}  # fmt: skip
"""At which passage; elsewhere at the 20th, in the middle of the load. Six replicas are forked at the start, after one
assignment, and two offers: of places, and with the code of the application."""
AT_ONCE = 100
MAY_LOG = (
    "failpoint", "was sent SIGKILL", "blocked the event loop", "frozen", "connection to the broker was lost",
    "cannot be reached", "the connection to the broker was closed",
)  # fmt: skip


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("point", "action"),
    [
        *itertools.product([*IN_GATEWAY, *IN_REPLICA, *IN_SUPERVISOR], ("kill9", "raise", "drop-connection")),
        # threads of a gateway that stand still have nobody who watches them; they wait for nothing without a limit
        *itertools.product([*IN_REPLICA, *IN_SUPERVISOR], ("hang",)),
    ],
)
def test_nothing_is_lost_whatever_happens_at(new_stack: Callable[..., Stack], point: str, action: str) -> None:
    stack = new_stack()
    mark = Path(stack.ledger.new_file("fired"))
    env = {"QSERVE_FAILPOINT": f"{point}:{action}:{NTH.get(point, 20)}", "QSERVE_FAILPOINT_ONCE": str(mark)}
    if point == "sweep.mid":  # which a supervisor does before it has anything to sweep
        stack.start().supervisor.stop()
        stack.supervisor = stack.worker(env=env)
    else:
        stack.start(**{"gateway" if point in IN_GATEWAY else "worker": env})
    load, by_http = stack.load(), Load(stack.http(), rate=25).start()
    load.more(30)
    deploying = _provoke(stack, point)
    wait_until(mark.exists, description=f"{point} was passed")

    if action in ("kill9", "hang") and point in IN_SUPERVISOR:
        # what restarts a container or a unit does this
        stack.supervisor.wait()
        stack.supervisor = stack.worker()
    assert deploying is None or deploying.wait() == 0, deploying.output
    stack.wait_replicas()
    wait_until(stack.is_serving, description="the gateway is healthy")
    load.more(100)
    calls, answers = load.stop(), by_http.stop()

    failed = [call.id for call in calls if "raised by a failpoint" in call.error]
    assert len(failed) <= (1 if action == "raise" else 0), failed
    # clients of a gateway that died had no answer, and so do not know of an acceptance
    assert all(call.status in (0, 200, 500, 503) for call in answers)
    assert by_http.calls[-1].is_right
    check(stack, [*calls, *answers], reruns=AT_ONCE, may_fail=failed, may_log=MAY_LOG)


def _provoke(stack: Stack, point: str) -> Process | None:
    """Make the process pass the place, where load alone does not; return the deploy that does it."""
    if point == "drain.mid":
        os.kill(stack.replicas("Left")[0].pid, signal.SIGTERM)
    elif point in ("supervisor.after_fork", "supervisor.before_handover"):
        kill(stack.replicas("Left")[0].pid)
    return stack.deploy() if point in IN_LEADER else None
