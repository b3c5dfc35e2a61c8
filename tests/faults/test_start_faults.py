"""Starts that cannot succeed, or take their time: what serves goes on, and what is wrong is said once."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from cgroups import limited
from invariants import check
from ledger import DIAMOND
from load import Load
from processes import is_alive, wait_until
from rows import row
from stacks import Stack, kill

CLASS = "class Left:\n"
HANGS = DIAMOND.replace(CLASS, f"{CLASS}    def __init__(self):\n        time.sleep(3600)\n\n")
WITH_HEALTH = DIAMOND.replace(
    f"graceful_shutdown_timeout_s=5)\n{CLASS}",
    "graceful_shutdown_timeout_s=5, health_check_period_s=0.1, health_check_timeout_s=1)\n"
    + CLASS
    + """    checks = 0

    async def check_health(self):
        kind, _, pid = open(LEDGER + ".health").read().partition(" ")
        self.checks += 1
        if pid == str(os.getpid()):
            if kind == "fails" or (kind == "flaps" and self.checks % 3):
                raise RuntimeError("ill")
            if kind == "hangs":
                await asyncio.sleep(3600)

""",
)


@row("F36")
def test_a_constructor_that_hangs_is_ended_and_reported_and_the_old_version_serves(
    new_stack: Callable[..., Stack],
) -> None:
    stack = new_stack(env={"QSERVE_START_TIMEOUT_S": "3"}).start()
    load, by_http = stack.load(), Load(stack.http(), rate=25).start()
    load.more(50)

    with load.fault():
        assert HANGS != DIAMOND
        stack.write_app(version=2, text=HANGS)
        deploying = stack.deploy()
        assert deploying.wait() != 0
        stack.write_app()
    load.more(50)
    calls, answers = load.stop(), by_http.stop()

    assert "start_timeout" in deploying.stderr
    assert all(call.status == 200 for call in answers)
    assert {tuple(call.answer["versions"]) for call in [*calls, *answers]} == {(1, 1, 1)}
    check(stack, [*calls, *answers], load=load, reruns=0, may_log=["start_timeout", "not be started"])


@row("F37")
def test_only_what_stays_ill_is_replaced_and_its_calls_are_finished(new_stack: Callable[..., Stack]) -> None:
    assert WITH_HEALTH != DIAMOND
    stack = new_stack()
    stack.write_app(text=WITH_HEALTH)
    health = Path(f"{stack.ledger.path}.health")
    health.write_text("well 0")
    stack.start()
    load = stack.load()
    load.more(50)

    with load.fault():
        flapping = stack.replicas("Left")[0].pid
        health.write_text(f"flaps {flapping}")
        load.more(150)
        assert is_alive(flapping)
        for kind in ("fails", "hangs"):
            ill = stack.replicas("Left")[0].pid
            health.write_text(f"{kind} {ill}")
            wait_until(lambda ill=ill: not is_alive(ill), description=f"a replica that {kind} is ended")
            stack.wait_replicas()
    load.more(50)
    calls = load.stop()

    assert [call for call in calls if not call.is_right][:3] == []
    check(stack, calls, load=load, reruns=0, may_log=["check_health failed"])


@row("F38")
def test_a_supervisor_that_may_start_no_process_says_so_and_goes_on_when_it_may(stack: Stack) -> None:
    with limited("pids", {"pids.max": "max"}) as within:
        group = Path(within[-1]).parent
        stack.supervisor.signal(signal.SIGTERM)
        assert stack.supervisor.wait() == 0
        stack.supervisor = stack.worker(within=within)
        stack.wait_replicas()
        load = stack.load()
        load.more(50)

        with load.fault():
            victim = stack.replicas("Left")[0].pid
            threads = len(list(Path(f"/proc/{victim}/task").iterdir()))
            limit = int((group / "pids.current").read_text()) - threads
            (group / "pids.max").write_text(str(limit))
            kill(victim)
            wait_until(lambda: "cannot_start: EAGAIN" in stack.supervisor.output, description="it says why")
            assert "cannot_start: EAGAIN" in status_of(stack)
            load.more(50)
            (group / "pids.max").write_text("max")
            stack.wait_replicas()
        load.more(50)
        calls = load.stop()

        assert is_alive(stack.supervisor.pid)
        wait_until(lambda: "cannot_start" not in status_of(stack), description="the status shows no failure any more")
        check(stack, calls, load=load, reruns=100, may_log=["cannot_start", "died"])


def status_of(stack: Stack) -> str:
    """What ``qserve status`` shows."""
    status = stack.command("status")
    assert status.wait() == 0, status.output
    return status.stdout
