"""The broker's clock is set an hour ahead or back while calls wait and run: none is lost, none is done twice."""

from __future__ import annotations

import contextlib
import os
import signal
import sysconfig
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from http_client import Client
from processes import PATIENCE_S, Process, Site, new_site, wait_until
from roles import Roles

from qserve.base.clock import clock
from qserve.base.keys import Keys
from qserve.broker.connection import connect

LIBRARY = Path(sysconfig.get_path("purelib"), "libfaketime", "vendor", "libfaketime", "src", "libfaketime.so.1")
# the loader only warns of a library that is missing, and the broker would run by the right time
pytestmark = pytest.mark.skipif(
    not LIBRARY.is_file(), reason=f"no {LIBRARY}: pip install libfaketime, which is built with make and a C compiler"
)
HOUR_S = 3600

APP = """
import asyncio, os
import qserve

def note(name):
    with open(os.environ["LEDGER"], "a") as ledger:
        ledger.write(f"{name} {os.getpid()}\\n")

@qserve.deployment(max_retries=3, retry_backoff_s=2.0, max_ongoing_requests=4)
class Steps:
    def __init__(self):
        self.seen = set()

    async def __call__(self, request):
        call = await request.json()
        name = call["name"]
        note(name)
        if call.get("fail_once") and name not in self.seen:
            self.seen.add(name)
            raise RuntimeError("the first time")
        await asyncio.sleep(call.get("seconds", 0))
        return name

app = Steps.bind()
"""


class Served(Roles):
    """An application on a broker whose clock can be set."""

    def __init__(self, site: Site) -> None:
        self.ledger = site.folder / "ledger"
        self.ledger.touch()
        self._clock, self._ahead_s = site.folder / "clock", 0
        self.processes: tuple[Process, ...] = ()
        self.change_clock(0)
        self.url = self._start_broker(site)
        self.answers: dict[str, int] = {}
        self._threads: list[threading.Thread] = []
        super().__init__(site, APP, {"QSERVE_BROKER_URL": self.url, "LEDGER": str(self.ledger)})
        self.processes = self.start()
        wait_until(lambda: self.post({"name": "first"}) == 200, description="requests are answered")

    def _start_broker(self, site: Site) -> str:
        # only the time of day: nobody can set the monotonic clock
        own = {"LD_PRELOAD": str(LIBRARY), "FAKETIME_TIMESTAMP_FILE": str(self._clock), "FAKETIME_NO_CACHE": "1"}
        own |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}
        return site.broker("--appendonly", "yes", env=own)

    def change_clock(self, by_s: int) -> None:
        """Set the broker's clock; the file is read at each look at the time, and must never be empty."""
        self._ahead_s += by_s
        self._jumps = self.jumps() if self.processes else 0
        fresh = self._clock.with_suffix(".fresh")
        fresh.write_text(f"{self._ahead_s:+d}")
        fresh.rename(self._clock)

    def post(self, call: dict[str, object]) -> int:
        """The status of one request."""
        answer = Client(self.port, timeout_s=PATIENCE_S).post("/", call)
        assert answer.status != 200 or answer.text == call["name"]
        return answer.status

    def begin(self, **call: object) -> None:
        """Send a request, whose answer comes later."""

        def run() -> None:
            self.answers[str(call["name"])] = self.post(call)

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def end(self) -> None:
        """Wait for all answers."""
        for thread in self._threads:
            thread.join(2 * PATIENCE_S)
            assert not thread.is_alive(), "a caller still waits"
        self._threads.clear()

    def forget(self) -> None:
        """Begin again for another test."""
        self.answers.clear()
        self.ledger.write_text("")

    def jumps(self) -> int:
        """How often the gateway has told of a change."""
        return self.processes[1].output.count("clock_jump")

    def wait_until_told(self) -> None:
        """Wait until the gateway has told of the last change: one that is taken back before is none."""
        wait_until(lambda: self.jumps() > self._jumps, description="the gateway tells of the change")

    def runs(self) -> Counter[str]:
        """How often each call was begun."""
        return Counter(line.split()[0] for line in self.ledger.read_text().splitlines())

    def pid_of(self, name: str) -> int:
        """The process that began a call last."""
        return int([line.split()[1] for line in self.ledger.read_text().splitlines() if line.split()[0] == name][-1])


@pytest.fixture(scope="module")
def installation() -> Iterator[Served]:
    before = dict(vars(clock))
    with new_site() as site:
        yield Served(site)
    vars(clock).update(before)  # this process has followed the broker's clock


@pytest.fixture
def served(installation: Served) -> Iterator[Served]:
    before = dict(vars(clock))
    installation.forget()
    yield installation
    installation.end()
    vars(clock).update(before)  # this process has followed the broker's clock


@pytest.mark.row("F34")
@pytest.mark.slow
@pytest.mark.parametrize("ahead_s", [HOUR_S, -HOUR_S], ids=["ahead", "back"])
def test_an_hours_change_of_the_clock_loses_nothing_and_ends_nothing_early(served: Served, ahead_s: int) -> None:
    running = [f"running{number}" for number in range(4)]
    waiting = [f"waiting{number}" for number in range(4)]
    tried = f"tried{ahead_s}"
    served.begin(name=tried, fail_once=True)
    wait_until(lambda: served.runs()[tried] == 1, description="a call waits for its next try")
    for name in running:
        served.begin(name=name, seconds=3)
    wait_until(lambda: all(served.runs()[name] for name in running), description="the replica is busy")
    for name in waiting:
        served.begin(name=name)
    with contextlib.closing(connect(served.url)) as client:
        queue = f"{Keys().stream('default', '', 'Steps').split('::')[0]}:*"
        wait_until(
            lambda: sum(client.xlen(key) for key in client.scan_iter(queue, _type="stream")) >= 8,
            description="calls wait in the queue",
        )

    served.change_clock(ahead_s)
    served.begin(name="after")
    served.end()

    assert {name: status for name, status in served.answers.items() if status != 200} == {}
    assert len(served.answers) == 10
    runs = served.runs()
    assert {runs[name] for name in (*waiting, "after")} == {1}
    assert runs[tried] == 2
    assert all(runs[name] <= 2 for name in running)
    served.wait_until_told()
    for process in served.processes:
        assert process.exit_code() is None, process.output


@pytest.mark.row("F34")
@pytest.mark.slow
@pytest.mark.parametrize("ahead_s", [HOUR_S, -HOUR_S], ids=["ahead", "back"])
def test_the_calls_of_a_replica_that_dies_after_the_change_are_run_again(served: Served, ahead_s: int) -> None:
    served.change_clock(ahead_s)
    served.begin(name="killed", seconds=1)
    wait_until(lambda: served.runs()["killed"] == 1, description="it runs")
    os.kill(served.pid_of("killed"), signal.SIGKILL)
    wait_until(lambda: served.runs()["killed"] == 2, description="it runs again")
    served.end()
    assert served.answers["killed"] == 200
    served.wait_until_told()
