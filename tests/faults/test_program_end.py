"""Programs that end right after their calls: those are stored, or the program says which are not and fails."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from processes import Process, Site, free_port, new_site, wait_until
from proxy import Proxy
from roles import Roles
from rows import row

FAILED = 120
APP = """
import time
import qserve

@qserve.deployment
class Note:
    def write(self, text):
        with open("notes", "a") as out:
            out.write(text + "\\n")
        return text

@qserve.deployment(max_concurrent_queries=1, max_queued_requests=1, graceful_shutdown_timeout_s=0.1)
class Full:
    def write(self, seconds):
        time.sleep(seconds)

@qserve.deployment
class Front:
    def __init__(self, note, full):
        pass

app = Front.bind(Note.bind(), Full.bind())
"""
HEAD = """
import asyncio, atexit, concurrent.futures, multiprocessing, os, signal, sys, threading, time
import qserve

note = qserve.get_deployment_handle("Note").write
name = sys.argv[1]

def submit(part=""):
    return note.remote(name + part)

def wait(): # until the test says so
    submit("-first").result(timeout_s=60)
    print("ready", flush=True)
    while not os.path.exists(f"{name}.go"):
        time.sleep(0.01)
"""
FILL = """
from qserve.exceptions import BackPressureError
try:
    while True:
        qserve.get_deployment_handle("Full").write.remote(3600).accepted()
except BackPressureError:
    pass
"""
# how a program submits a call named as the program, and ends; with its exit code
WAYS = {
    "falls-off": ("submit()", 0),
    "exit": ("submit(); sys.exit(0)", 0),
    "exit-3": ("submit(); sys.exit(3)", 3),
    "error": ("submit(); 1 / 0", 1),
    "ctrl-c": ("submit(); signal.raise_signal(signal.SIGINT)", -2),
    "many": ("for number in range(500): submit(f'-{number}')\nsubmit()", 0),
    "thread": ("threading.Thread(target=lambda: (time.sleep(0.1), submit())).start()", 0),
    "daemon-thread": ("t = threading.Thread(target=submit, daemon=True); t.start(); t.join()", 0),
    "asyncio": ("async def main(): submit()\nasyncio.run(main())", 0),
    "executor": ("concurrent.futures.ThreadPoolExecutor().submit(submit)", 0),
    "atexit-first-use": ("atexit.register(submit)", 0),
    "atexit-before": ("atexit.register(submit); submit('-first')", 0),
    "atexit-after": ("submit('-first'); atexit.register(submit)", 0),
    "atexit-result": ("atexit.register(lambda: print(submit().result(60))); submit('-first')", 0),
    "process-fork": ("submit('-first'); p = multiprocessing.get_context('fork').Process(target=submit)", 0),
    "process-spawn": ("submit('-first'); p = multiprocessing.get_context('spawn').Process(target=submit)", 0),
    "process-takes-ref": (
        "p = multiprocessing.get_context('spawn').Process(target=qserve.get, args=(submit(),))",
        0,
    ),
    "process-pool": (
        "submit('-first').result()\n"
        "with concurrent.futures.ProcessPoolExecutor(1) as pool: pool.submit(submit_here).result()",
        0,
    ),
    "fork": ("submit('-first').result()\nif not os.fork(): submit()\nelse: assert os.wait()[1] == 0", 0),
    "client": ("qserve.connect().get_deployment_handle('Note').write.remote(name)", 0),
    "client-many": (
        "with qserve.connect() as client:\n"
        "    client.submit_many(client.get_deployment_handle('Note').write, [(f'{name}-{n}',) for n in range(500)])\n"
        "qserve.submit_many(note, [(name,)])",
        0,
    ),
    "client-fork": (
        "client = qserve.connect(); call = client.get_deployment_handle('Note').write.remote\n"
        "call('first').result(); submit('-first')\n"
        "if not os.fork(): call(name).result(60)\nelse: assert os.wait()[1] == 0; call('last')",
        0,
    ),
    "fork-with-ref": (
        "ref = submit('-first')\n"
        "if not os.fork(): print(ref.result(60)); submit()\nelse: assert os.wait()[1] == 0; ref.result(60)",
        0,
    ),
}


def source_of(way: str) -> str:
    source = WAYS[way][0]
    if way.startswith("process-"):
        if " p = " in source:
            source += "; p.start(); p.join(); sys.exit(p.exitcode)"
        source = "def submit_here(): submit()\nif __name__ == '__main__':\n  " + source.replace("\n", "\n  ")
    return source


class Office:
    """A broker, a worker that notes its calls in a file, and programs whose way to the broker is a proxy."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.port = free_port()
        site.start_broker(self.port)
        # Full stays full for longer than all tests here can take
        env = {"QSERVE_BROKER_URL": f"redis://127.0.0.1:{self.port}/0", "QSERVE_REQUEST_TIMEOUT_S": "3600"}
        self.roles = Roles(site, APP, env)
        self.roles.start()
        self.folder = site.folder / "programs"
        self.folder.mkdir()
        self._count = 0
        filled = self.program(FILL)
        assert filled.wait() == 0, filled.output

    def program(self, source: str, name: str = "", proxy: Proxy | None = None) -> Process:
        self._count += 1
        name = name or f"program-{self._count}"
        path = self.folder / f"{name}.py"
        path.write_text(HEAD + source)
        env = {**self.roles.env, **({"QSERVE_BROKER_URL": proxy.url} if proxy else {})}
        return self.site.start([sys.executable, str(path), name], cwd=self.folder, env=env)

    def notes(self) -> Counter[str]:
        return Counter((self.site.folder / "notes").read_text().split())

    def go(self, name: str) -> None:
        (self.folder / f"{name}.go").touch()


@pytest.fixture(scope="module")
def office() -> Iterator[Office]:
    with new_site() as site:
        yield Office(site)


@pytest.fixture
def proxy(office: Office) -> Iterator[Proxy]:
    made = Proxy(office.port)
    yield made
    made.close()


def lost_of(process: Process) -> tuple[int, list[str]]:
    """How many requests a program says it has lost, and the line of each."""
    found = re.search(r"^qserve: (\d+) requests? (?:was|were) not stored:\n((?:  .*\n)+)", process.stderr, re.MULTILINE)
    assert found, process.output
    return int(found[1]), found[2].splitlines()


def run_each_way(office: Office, way: str, runs: int) -> None:
    names = [f"{way}-of-{runs}-{number}" for number in range(runs)]
    for pair in (names[at : at + 2] for at in range(0, runs, 2)):
        for process in [office.program(source_of(way), name) for name in pair]:
            assert process.wait() == WAYS[way][1], process.output
            assert "qserve:" not in process.stderr, process.output
    wait_until(lambda: office.notes().keys() >= set(names), description=f"all of {names} are noted")
    assert {office.notes()[name] for name in names} == {1}


IN_SHORT = {"falls-off", "error", "ctrl-c", "thread", "atexit-before", "process-spawn", "fork", "client-many"}
"""One of each hook of the interpreter that is taken; the others have another act before it."""


@row("F49", priority=True)
@pytest.mark.parametrize("way", [way if way in IN_SHORT else pytest.param(way, marks=pytest.mark.long) for way in WAYS])
def test_what_a_program_submits_right_before_its_end_is_stored(office: Office, way: str) -> None:
    run_each_way(office, way, runs=1)


@row("F49")
@pytest.mark.parametrize("way", WAYS)
def test_of_twenty_programs_none_loses_a_call(office: Office, way: str) -> None:
    run_each_way(office, way, runs=20)


# how a program ends whose broker has gone, and its exit code
ENDS = {
    "falls-off": ("", FAILED),
    "exit": ("sys.exit(0)", FAILED),
    "exit-3": ("sys.exit(3)", 3),
    "exit-text": ("sys.exit('no')", 1),
    "error": ("1 / 0", 1),
    "ctrl-c": ("signal.raise_signal(signal.SIGINT)", -2),
    "atexit": ("atexit.register(submit)", FAILED),
}
CHILD = """
def child():
    wait()
    submit()

if __name__ == "__main__":
    process = multiprocessing.get_context("METHOD").Process(target=child)
    process.start()
    process.join()
    print("child", process.exitcode)
"""


IN_SHORT_AWAY = ("falls-off", "ctrl-c", "atexit")


@row("F49", priority=True)
@pytest.mark.parametrize(
    ("ways", "methods"),
    [
        (IN_SHORT_AWAY, ("spawn",)),
        pytest.param([way for way in ENDS if way not in IN_SHORT_AWAY], ("fork",), marks=pytest.mark.long),
    ],
    ids=["hooks", "others"],
)
def test_programs_say_what_a_broker_that_is_away_has_not_stored_and_fail(
    office: Office, proxy: Proxy, ways: Sequence[str], methods: Sequence[str]
) -> None:
    source = "log = open(f'{name}.log', 'w'); wait(); log.write(' '.join(submit().request_id for _ in range(2)))\n"
    programs = {f"away-{way}": office.program(source + ENDS[way][0], f"away-{way}", proxy) for way in ways}
    children = {method: office.program(CHILD.replace("METHOD", method), method, proxy) for method in methods}
    for process in (*programs.values(), *children.values()):
        process.wait_for("ready")
    proxy.close()
    for name in (*programs, *children):
        office.go(name)

    for name, process in programs.items():
        assert process.wait() == ENDS[name.removeprefix("away-")][1], process.output
        count, lines = lost_of(process)
        ids = (office.folder / f"{name}.log").read_text().split()
        assert len(ids) == 2, "its open files were written to their ends"
        assert count == 3 if name == "away-atexit" else 2
        for request_id, line in zip(ids, lines, strict=False):
            assert request_id in line
            assert "'Note'" in line
            assert "the broker cannot be reached" in line
        assert office.notes()[name] == 0
    for process in children.values():
        assert process.wait() == 0, process.output
        assert f"child {FAILED}" in process.stdout
        assert lost_of(process)[0] == 1


@row("F49", priority=True)
def test_a_broker_that_is_away_for_a_moment_is_tried_again_at_the_end(office: Office, proxy: Proxy) -> None:
    process = office.program("wait(); submit()", "moment", proxy)
    process.wait_for("ready")
    proxy.accepts.clear()
    proxy.cut()
    office.go("moment")
    wait_until(lambda: proxy.connections == 0, description="it has lost its connections")
    proxy.accepts.set()

    assert process.wait() == 0, process.output
    wait_until(lambda: office.notes()["moment"] == 1, description="its call has run")


@row("F49")
def test_a_broker_that_is_silent_does_not_keep_a_program_for_ever(office: Office, proxy: Proxy) -> None:
    process = office.program("wait(); [submit() for _ in range(1000)]", "silent", proxy)
    process.wait_for("ready")
    proxy.black_hole()
    office.go("silent")

    assert process.wait() == FAILED, process.output
    count, lines = lost_of(process)
    assert count == 1000
    assert lines[-1] == "  and 980 more"


@row("F49", priority=True)
@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("refs = [full.remote(1), full.remote(2)]", FAILED),
        ("full.remote(1); qserve.shutdown()", FAILED),
        ("qserve.get_deployment_handle('Note').nothing.remote()", 0),
        pytest.param(
            "try: full.remote(1).result()\nexcept qserve.exceptions.BackPressureError: pass", 0, marks=pytest.mark.long
        ),
        ("try: full.remote(1).accepted(timeout_s=60)\nexcept qserve.exceptions.BackPressureError: pass", 0),
        ("full.remote(1).cancel()", 0),
    ],
)
def test_a_program_that_has_not_seen_a_refusal_is_told_of_it(office: Office, source: str, code: int) -> None:
    process = office.program("import qserve.exceptions; full = qserve.get_deployment_handle('Full').write\n" + source)
    assert process.wait() == code, process.output
    if code:
        assert "'Full'" in lost_of(process)[1][0]
        assert "backpressure" in lost_of(process)[1][0]
    else:
        assert "qserve:" not in process.stderr, process.output


OWN_BROKER = """
import os, sys, time
import qserve

@qserve.deployment(max_concurrent_queries=1)
class Slow:
    def __call__(self, seconds):
        time.sleep(seconds)
        open(f"slept-{seconds}", "w").close()

handle = qserve.run(Slow.bind(), port=PORT)
"""


@row("F49")
@pytest.mark.parametrize(
    ("end", "code", "unfinished"),
    [
        ("handle.remote(0.3)", 0, 0),
        ("handle.remote(0.3); [handle.remote(60) for _ in range(3)]", FAILED, 3),
        ("handle.remote(60); sys.exit(3)", 3, 1),
        ("handle.remote(60).cancel()", 0, 0),
        (
            "ref = handle.remote(60); qserve.shutdown(); sys.exit(type(ref.error()).__name__ != 'BrokerUnavailable')",
            0,
            1,
        ),
    ],
)
def test_a_program_that_ends_with_its_own_broker_says_what_was_not_finished(
    site: Site, end: str, code: int, unfinished: int
) -> None:
    path: Path = site.write("own.py", OWN_BROKER.replace("PORT", str(free_port())) + end) / "own.py"
    process = site.start([sys.executable, str(path)], cwd=site.folder)

    assert process.wait() == code, process.output
    found = re.search(r"^qserve: (\d+) requests? (?:was|were) not finished when", process.stderr, re.MULTILINE)
    assert int(found[1] if found else 0) == unfinished, process.output
    site.wait_empty()
