"""The machine's own processes: one that is killed is restarted, and nothing that was accepted is lost."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from http_client import Answer, Client
from processes import READY, Process, Serving, Site, free_port, is_open, wait_until

from qserve.broker.connection import connect
from qserve.machine.embedded_broker import EmbeddedBroker

GATEWAY, SUPERVISOR, BROKER = "the gateway", "the workers' supervisor", "the embedded broker"
COMMANDS = {GATEWAY: "qserve[ _]gateway", SUPERVISOR: "qserve[ _]worker", BROKER: "valkey-server"}
"""What is in the command lines: at first the name of a module, and then the title of the process."""
pytestmark = pytest.mark.slow
EACH = pytest.mark.parametrize("name", [GATEWAY, SUPERVISOR, BROKER])

APP = """
import asyncio
import os
import qserve

@qserve.deployment
class Slow:
    async def __call__(self, request):
        body = (await request.body()).decode()
        with open("ledger", "a") as out:
            out.write(body + "\\n")
        while body.startswith("gated") and not os.path.exists("gate"):
            await asyncio.sleep(0.01)
        return {"body": body}

app = Slow.bind()
"""


def send(port: int, method: str, path: str, body: str | None = None, **headers: str) -> Answer:
    """Send one request, and answer what came; with an OSError when the connection was cut."""
    try:
        return Client(f"http://127.0.0.1:{port}").send(method, path, body and body.encode(), **headers)
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error


def accept(port: int, body: str) -> Answer:
    """Have a request accepted, however often it must be sent for that, and answer what came then."""

    def sent() -> Answer | None:
        with contextlib.suppress(OSError):
            answer = send(port, "POST", "/", body, Prefer="respond-async", Idempotency_Key=body)
            # 200: it was accepted before, and is done
            assert answer.status in (200, 202, 503), answer
            return answer if answer.status != 503 else None
        return None

    answer = wait_until(sent, description=f"{body} is accepted")
    assert answer is not None
    return answer


def run_app(site: Site) -> Serving:
    return site.run("slow:app", cwd=site.write("slow.py", APP))


def own(site: Site, process: Process, name: str) -> int:
    """The process of that name that ``process`` itself started; 0 when there is none."""
    for pid, command in site.processes().items():
        with contextlib.suppress(OSError):
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if re.search(COMMANDS[name], command) and parent == process.pid:
                return pid
    return 0


def kill_each(site: Site, process: Process, name: str, until: Callable[[], bool]) -> None:
    """Kill the process of that name, and each that is started in its place, until it is given up."""
    seen = {0}

    def kill_the_next() -> bool:
        pid = own(site, process, name)
        if pid not in seen:
            seen.add(pid)
            os.kill(pid, signal.SIGKILL)
        return until()

    wait_until(kill_the_next, description=f"{name} is given up")


def kill_once(site: Site, process: Process, name: str) -> None:
    """Kill the process of that name, and wait until another has taken its place."""
    victim = own(site, process, name)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: own(site, process, name) not in (0, victim), description=f"{name} is restarted")


def ledger(site: Site) -> list[str]:
    file = site.folder / "ledger"
    return file.read_text().splitlines() if file.exists() else []


def is_serving(port: int) -> bool:
    with contextlib.suppress(OSError):
        return send(port, "GET", "/-/healthz").status == 200
    return False


def result_of(waiting: Future[Answer]) -> Answer | None:
    try:
        return waiting.result(30)
    except OSError:
        return None


# -- what was accepted -----------------------------------------------------------------------------


@pytest.mark.row("F48")
@pytest.mark.parametrize(
    "name", [BROKER, *(pytest.param(one, marks=pytest.mark.long) for one in (GATEWAY, SUPERVISOR))]
)
def test_what_was_accepted_before_a_kill_and_during_it_is_answered_once(site: Site, name: str) -> None:
    serving = run_app(site)
    port, run = serving.port, serving.process
    victim = own(site, run, name)
    folders = site.broker_folders()

    with ThreadPoolExecutor(8) as pool:
        jobs = [f"gated-{number}" for number in range(20)]
        for body in jobs:
            assert accept(port, body).status == 202
        waiting = pool.submit(send, port, "POST", "/", "gated-open")
        wait_until(lambda: len(ledger(site)) == 21, description="all of them run")
        under_way = {f"later-{number}": pool.submit(accept, port, f"later-{number}") for number in range(200)}
        wait_until(lambda: len(ledger(site)) >= 60, description="requests are under way")
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: own(site, run, name) not in (0, victim), description="it is restarted")
        wait_until(lambda: is_serving(port), description="requests are answered")
        for body, one in under_way.items():
            one.result()
            jobs.append(body)
        (site.folder / "gate").touch()
        opened = result_of(waiting)

    for body in jobs:
        answers = [send(port, "POST", "/", body, Idempotency_Key=body) for _ in range(2)]
        assert [(one.status, one.json) for one in answers] == [(200, {"body": body})] * 2
    # only the gateway's own death cuts a connection off
    assert (opened is None) == (name == GATEWAY)
    assert opened is None or (opened.status, opened.json) == (200, {"body": "gated-open"})
    ran = Counter(ledger(site))
    assert set(ran) == {*jobs, "gated-open"}
    # replicas end with their supervisor: user code that they were running runs again
    assert name == SUPERVISOR or set(ran.values()) == {1}
    assert site.broker_folders() == folders
    assert f"WARNING [run] {name} was killed by SIGKILL; restarting it" in run.stderr
    run.press_ctrl_c()
    assert run.wait() == 0, run.output
    site.wait_empty()


@pytest.mark.row("F48")
@pytest.mark.long  # one after the other is below, in a program
def test_all_three_may_be_killed_at_once_and_one_after_the_other(site: Site) -> None:
    port = free_port()
    # replicas that lose supervisor and broker together can give nothing back: their calls wait for a lease
    run = site.qserve(
        "run", "slow:app", "--port", str(port), cwd=site.write("slow.py", APP), env={"QSERVE_LEASE_S": "2"}
    )
    run.wait_for(READY)
    locations = []

    for number, names in enumerate([[*COMMANDS], [BROKER], [SUPERVISOR], [GATEWAY], [*COMMANDS]]):
        locations.append(accept(port, f"gated-{number}").headers["location"])
        victims = {name: own(site, run, name) for name in names}
        for pid in victims.values():
            os.kill(pid, signal.SIGKILL)
        for name, pid in victims.items():
            wait_until(lambda: own(site, run, name) not in (0, pid), description=f"{name} is restarted")  # noqa: B023
        wait_until(lambda: is_serving(port), description="requests are answered")
    (site.folder / "gate").touch()

    for number, location in enumerate(locations):
        answer = send(port, "GET", location, Prefer="wait=20")
        assert (answer.status, answer.json) == (200, {"body": f"gated-{number}"})


# -- when it is of no use --------------------------------------------------------------------------


def ends_with(run: Process, site: Site) -> str:
    """Wait for the failure, and answer the last that is said of it; processes may log something more as they end."""
    assert run.wait() == 1, run.output
    site.wait_empty()
    assert "Traceback" not in run.output
    return [line for line in run.stderr.splitlines() if line.startswith("Error: ")][-1]


@pytest.mark.row("F48")
@EACH
@pytest.mark.long  # tests/machine/test_children.py has it
def test_a_process_that_dies_again_and_again_ends_the_run(site: Site, name: str) -> None:
    serving = run_app(site)
    run = serving.process

    kill_each(site, run, name, until=lambda: run.exit_code() is not None)

    assert ends_with(run, site).startswith(f"Error: {name} was killed by SIGKILL (5 times in a row")
    assert not is_open(serving.port)


def test_a_broker_that_cannot_read_its_file_ends_the_run_with_its_own_words(site: Site) -> None:
    run = run_app(site).process
    (data,) = (site.folder / site.broker_folders()[0] / "appendonlydir").glob("*.incr.aof")
    data.write_bytes(b"not what a server would write\n" * 10)

    os.kill(own(site, run, BROKER), signal.SIGKILL)

    last = ends_with(run, site)
    assert last.startswith(f"Error: {BROKER} exited with code 1: ")
    assert "Bad file format" in last


def test_a_broker_goes_on_with_a_file_whose_end_is_half_written(site: Site) -> None:
    serving = run_app(site)
    run, port = serving.process, serving.port
    location = accept(port, "gated-0").headers["location"]
    victim = own(site, run, BROKER)
    (data,) = (site.folder / site.broker_folders()[0] / "appendonlydir").glob("*.incr.aof")
    os.kill(victim, signal.SIGSTOP)
    with data.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$5\r\nunf")

    os.kill(victim, signal.SIGKILL)

    wait_until(lambda: own(site, run, BROKER) not in (0, victim), description="it is restarted")
    (site.folder / "gate").touch()
    wait_until(lambda: is_serving(port), description="requests are answered")
    assert send(port, "GET", location, Prefer="wait=20").json == {"body": "gated-0"}


@EACH
@pytest.mark.long  # tests/machine/test_children.py has it
def test_a_process_that_dies_before_all_is_ready_ends_the_run(site: Site, name: str) -> None:
    slow = "import time, qserve\n\n@qserve.deployment\nclass Slow:\n    def __init__(self):\n"
    folder = site.write("slow.py", f"{slow}        time.sleep(600)\n\napp = Slow.bind()\n")
    run = site.qserve("run", "slow:app", "--port", str(free_port()), cwd=folder)
    run.wait_for("0/1 starting")

    os.kill(own(site, run, name), signal.SIGKILL)

    assert ends_with(run, site) == f"Error: {name} was killed by SIGKILL"


# -- how it ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "moment"),
    [
        # tests/e2e/test_run_command.py has Ctrl-C, and the program below ends after each was killed
        *(pytest.param([name], "at once", marks=pytest.mark.long) for name in COMMANDS),
        pytest.param([*COMMANDS], "when it is restarted", marks=pytest.mark.long),
    ],
)
def test_ctrl_c_after_a_kill_leaves_nothing_behind(site: Site, names: list[str], moment: str) -> None:
    run = run_app(site).process

    for name in names:
        os.kill(own(site, run, name), signal.SIGKILL)
        if moment != "at once":
            run.wait_for(f"{name} was killed by SIGKILL; restarting it")
    run.press_ctrl_c()

    assert run.wait() == 0, run.output
    site.wait_empty()


@pytest.mark.long  # tests/e2e/test_run_command.py kills a run
def test_what_was_started_again_ends_with_a_run_that_is_killed(site: Site) -> None:
    serving = run_app(site)
    run = serving.process
    for name in COMMANDS:
        kill_once(site, run, name)

    run.signal(signal.SIGKILL)

    run.wait()
    wait_until(lambda: not site.processes(), description=f"no orphans, not {site.processes()}")
    assert not is_open(serving.port)
    for folder in site.broker_folders():  # with the last process gone, nobody is left to remove it
        (site.folder / folder).rename(site.folder / f"left-{folder}")


def test_the_embedded_broker_writes_before_it_answers() -> None:
    broker = EmbeddedBroker()
    try:
        broker.wait_ready()
        with contextlib.closing(connect(broker.url)) as client:
            settings = client.config_get("append*")
    finally:
        broker.stop()

    # with "everysec" it writes after a sync that is under way, and a kill takes what it answered until then
    assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "no")


# -- from Python -----------------------------------------------------------------------------------

PROGRAM = """
import asyncio
import os
import sys
import qserve

@qserve.deployment
class Slow:
    async def __call__(self, number):
        with open("ledger", "a") as out:
            out.write(f"{number}\\n")
        while not os.path.exists("gate"):
            await asyncio.sleep(0.01)
        return number

handle = qserve.run(Slow.bind(), port=PORT)
refs = [handle.remote(number) for number in range(50)]
print("qserve: ready", flush=True)
sys.stdin = open("go")  # a pipe: opened when the test says so
print(sorted(qserve.get(refs, timeout=60)) == list(range(50)), flush=True)
print(qserve.get(handle.remote(50), timeout=60), flush=True)
handle = qserve.run(Slow.options(num_replicas=2).bind())
print(qserve.get(handle.remote(51), timeout=60), flush=True)
qserve.shutdown()
qserve.run(Slow.bind(), port=PORT)
print("again", flush=True)
"""


@pytest.mark.row("F48")
@pytest.mark.long  # the tests of `qserve run` above have the same restarter
def test_a_program_that_serves_has_its_processes_started_again(site: Site) -> None:
    port = free_port()
    site.write("program.py", PROGRAM.replace("PORT", str(port)))
    os.mkfifo(site.folder / "go")
    program = site.start([sys.executable, "program.py"], cwd=site.folder)
    program.wait_for(READY)
    wait_until(lambda: len(set(ledger(site))) == 50, description="all of them run")

    # nothing in the program asks how its processes are: it waits for the test
    for name in (GATEWAY, BROKER, SUPERVISOR):
        # replicas end with their supervisor: user code that they were running runs again, and before that it runs once
        assert set(Counter(ledger(site)).values()) == {1}
        kill_once(site, program, name)
        assert f"{name} was killed by SIGKILL; restarting it" in program.stderr
    (site.folder / "gate").touch()
    wait_until(lambda: is_serving(port), description="requests are answered")
    (site.folder / "go").write_text("")
    assert program.wait() == 0, program.output
    assert program.stdout.splitlines() == [READY, "True", "50", "51", "again"]
    assert len(set(ledger(site))) == 52
    site.wait_empty()


@pytest.mark.long  # tests/machine/test_children.py has when a process is given up
def test_a_program_learns_from_its_next_run_that_a_process_could_not_be_kept(site: Site) -> None:
    source = PROGRAM.partition("print(sorted")[0]
    source += "try:\n    qserve.run(Slow.bind())\nexcept qserve.exceptions.DeployError as error:\n    print(error)\n"
    site.write("program.py", source.replace("PORT", str(free_port())))
    os.mkfifo(site.folder / "go")
    program = site.start([sys.executable, "program.py"], cwd=site.folder)
    program.wait_for(READY)
    (site.folder / "gate").touch()

    kill_each(site, program, GATEWAY, until=lambda: "not restarting it any more" in program.stderr)
    (site.folder / "go").write_text("")

    assert program.wait() == 0, program.output
    assert program.stdout.splitlines()[-1].startswith(f"{GATEWAY} was killed by SIGKILL (5 times")
    site.wait_empty()


@pytest.mark.long  # tests/e2e/test_run_from_python.py asks at once
def test_a_started_program_is_ready_to_be_asked(site: Site) -> None:
    port = free_port()
    ask = f"import urllib.request as r; print(r.urlopen('http://127.0.0.1:{port}/-/routes').status)"
    program = site.start([sys.executable, "-c", f"import qserve; qserve.start(port={port}); {ask}"])

    assert program.wait() == 0, program.output
    assert program.stdout == "200\n"
