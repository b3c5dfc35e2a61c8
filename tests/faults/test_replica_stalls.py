"""Replicas that stall, fall behind, die or cannot start: others do the work, and the log says why."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from installation import SHOP, Installation, installed
from processes import PATIENCE_S, Site, is_alive, new_site, wait_until

from qserve.exceptions import DeadlineExceeded

# -- stalls ----------------------------------------------------------------------------------------


class Serving(Installation):
    """A worker with one replica, for tests that leave it with another one."""

    def __init__(self, site: Site) -> None:
        super().__init__(site, SHOP)
        self.worker_process = self.serve()


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    with new_site() as site, closing(Serving(site)) as made:
        yield made


@pytest.mark.parametrize("method", ["match_for_ever", "spin_in_a_thread"])
@pytest.mark.slow
@pytest.mark.long  # the row F18 has both under load
def test_code_that_never_ends_costs_its_caller_the_deadline_and_the_others_a_new_replica(
    serving: Serving, method: str
) -> None:
    shop = serving
    pids = shop.wait_running(1)

    stuck = shop.call(method, timeout_s=3.0)
    with pytest.raises(DeadlineExceeded):
        stuck.result(PATIENCE_S)
    wait_until(lambda: not is_alive(*pids), description="the replica is ended")

    assert shop.ask("pid") not in pids
    assert method in shop.worker_process.stderr


@pytest.mark.slow
def test_calls_that_nobody_waits_for_any_more_are_cancelled_and_the_replica_lives(serving: Serving) -> None:
    shop = serving
    (pid,) = shop.wait_running(1)
    stuck = shop.call("note", str(shop.site.folder / "ledger"), 1e9, timeout_s=1.0)
    shop.stream("items", timeout_s=1.0)
    with pytest.raises(DeadlineExceeded):
        stuck.result(PATIENCE_S)

    wait_until(lambda: shop.pending() == 0, description="the call is given up")
    assert shop.ask("pid") == pid


# -- reading ahead ---------------------------------------------------------------------------------


def test_a_fast_method_that_turns_slow_holds_nothing_that_others_could_run(shop: Installation) -> None:
    shop.serve(replicas=2, QSERVE_STALL_LIMIT_S="600")
    for _ in range(10):
        [one.result(PATIENCE_S) for one in [shop.call("work") for _ in range(100)]]

    gate = shop.site.folder / "gate"
    slow = shop.call("work", 0.0, str(gate))
    [one.result(PATIENCE_S) for one in [shop.call("work") for _ in range(100)]]  # while the slow one runs

    gate.touch()
    assert slow.result(PATIENCE_S) in shop.pids()


def test_calls_that_wait_for_the_thread_of_sync_code_are_shared(shop: Installation) -> None:
    shop.serve(replicas=2)
    for _ in range(10):
        [one.result(PATIENCE_S) for one in [shop.call("work") for _ in range(100)]]

    calls = [shop.call("work", 0.2) for _ in range(20)]

    shares = Counter(one.result(PATIENCE_S) for one in calls)
    assert len(shares) == 2 and min(shares.values()) >= 3, shares


# -- deaths ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.row("F39")
def test_a_replica_that_has_no_files_left_says_so_and_is_replaced(serving: Serving) -> None:
    shop = serving
    pid = shop.ask("open_everything")

    shop.client.client_kill_filter(_type="normal", skipme=True)

    assert shop.ask("pid") != pid
    assert "died (too many open files)" in shop.worker_process.stderr


@pytest.mark.parametrize(
    "method",
    ["sleep_on_the_loop", *(pytest.param(name, marks=pytest.mark.long) for name in ("pid", "spin_in_a_thread"))],
)
def test_replicas_end_soon_after_their_supervisor_was_killed(shop: Installation, method: str) -> None:
    worker = shop.serve(replicas=2, QSERVE_STALL_LIMIT_S="600")
    pids = shop.pids()
    for _ in range(2):
        shop.call(method)
    wait_until(lambda: method == "pid" or shop.pending() == 2, description="the calls run")

    worker.signal(signal.SIGKILL)

    wait_until(lambda: not any(map(is_alive, pids)), description="no replica is left")


# -- starts ----------------------------------------------------------------------------------------


@pytest.mark.row("F36")
@pytest.mark.long  # tests/faults/test_start_faults.py has it under load
def test_a_constructor_that_hangs_is_ended_and_the_version_before_goes_on(shop: Installation, site: Site) -> None:
    worker = shop.site.qserve("worker", "--name", "default", env={**shop.env, "QSERVE_START_TIMEOUT_S": "3"})
    first = shop.deploy()
    assert first.wait() == 0, first.output
    before = shop.pids()
    site.write("shop.py", SHOP.replace("self.files = []", "time.sleep(1e9)"))

    second = shop.deploy()

    assert second.wait() == 1
    assert "start_timeout: it was not constructed within 3 s (QSERVE_START_TIMEOUT_S)" in second.output
    assert shop.ask("pid") in before
    assert "in __init__" in worker.stderr


ILL = """
import os
from pathlib import Path
import qserve

@qserve.deployment(health_check_period_s=0.1)
class Machine:
    async def pid(self):
        return os.getpid()

    def check_health(self):
        if Path(__file__).with_name(f"well-{os.getpid()}").exists():
            return
        if Path(__file__).with_name("ill").exists():
            raise RuntimeError("ill")

app = Machine.bind()
"""


@pytest.mark.row("F37")
def test_replicas_that_fall_ill_together_are_replaced_one_after_the_other(site: Site) -> None:
    with installed(site, ILL) as shop:
        shop.serve(replicas=3)
        before, fewest = shop.pids(), 3
        names = {one.name for one in shop.replicas()}
        (site.folder / "ill").touch()

        def all_replaced() -> bool:
            nonlocal fewest
            now = shop.replicas()
            for one in now:
                if one.name not in names:
                    Path(site.folder / f"well-{one.pid}").touch()
            fewest = min(fewest, len(now))
            return len(now) == 3 and not before & {one.pid for one in now}

        wait_until(all_replaced, description="all are replaced")
        assert fewest == 2


IMPORTING = """
import sys
import qserve

@qserve.deployment
class Machine:
    def pid(self):
        return 0

    def modules(self):
        return list(sys.modules)

app = Machine.bind()
"""


def test_a_replica_imports_nothing_that_its_supervisor_could_have_imported_before_the_fork(site: Site) -> None:
    listing = [sys.executable, "-c", "import sys, qserve_workers.command; print(*sys.modules)"]
    before = set(subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split())

    with installed(site, IMPORTING) as shop:
        shop.serve()
        shop.ask("pid")
        after = set(shop.ask("modules"))

    # the supervisor has them when it has read what a deploy says of itself, and a replica inherits them
    of_supervisor = {"pydantic.dataclasses", "pydantic._internal._dataclasses"}
    assert after - before - {"runpy", "__mp_main__"} - of_supervisor == {"shop"}
