"""The roles apart, as a stack of containers runs them: one named broker, and a process for each role."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.app.control import Control
from http_client import Client
from processes import READY, Process, Site, free_port, new_site, wait_until
from qserve_workers.celery.app import make_celery
from roles import Roles

from qserve.base.settings import Settings
from qserve.broker.connection import connect

pytestmark = pytest.mark.slow
APP = """
import os
import qserve
from qserve import DAGDriver, InputNode
from qserve.http_adapters import json_request

@qserve.deployment
class Tokenizer:
    def split(self, text):
        return text.split()

@qserve.deployment
class Counter:
    def __init__(self, unit="words"):
        self.unit = unit

    def count(self, tokens):
        return {self.unit: len(tokens), "pid": os.getpid()}

with InputNode() as text:
    output = Counter.bind().count.bind(Tokenizer.bind().split.bind(text))

app = DAGDriver.bind(output, http_adapter=json_request)
"""

CALL = """
import json, os, qserve
handle = qserve.get_app_handle("default")
print(json.dumps(handle.predict.remote("one two three").result(timeout_s=60)))
counter = qserve.get_deployment_handle("Counter")
print(json.dumps(counter.count.remote(["a"]).result(timeout_s=60)))
"""


class Stack(Roles):
    """An installation with a worker for each deployment."""

    def __init__(self, site: Site) -> None:
        super().__init__(site, APP, {"QSERVE_BROKER_URL": site.broker()})

    counters: Process

    def worker_of(self, deployment: str, replicas: int = 1) -> Process:
        return self.worker("--deployment", deployment, "--replicas", str(replicas))

    def python(self, source: str, folder: Path) -> Process:
        """Run a program that has no access to the application's code."""
        folder.mkdir()
        return self.site.start([sys.executable, "-c", source], cwd=folder, env=self.env)

    def post(self, body: Any, port: int | None = None) -> Any:
        answer = Client(port or self.port).post("/", body)
        assert answer.status == 200, answer
        return answer.json

    def answers(self, port: int | None = None) -> bool:
        with contextlib.suppress(OSError):
            answer = Client(port or self.port).post("/", "one")
            return answer.status == 200 and answer.json["words"] == 1
        return False

    def start_all(self, *, counters: int = 1) -> tuple[Process, Process, Process]:
        """Start all roles, and go on once requests are answered."""
        tokenizers, counter = self.worker_of("Tokenizer"), self.worker_of("Counter", counters)
        self.counters = counter
        deploy, gateway = self.deploy(), self.gateway()
        assert deploy.wait() == 0, deploy.output
        wait_until(self.answers, description="requests are answered")
        return tokenizers, counter, gateway


@pytest.fixture(scope="module")
def running() -> Iterator[Stack]:
    """One stack with two replicas of Counter, for tests that leave it as it was."""
    with new_site() as site:
        stack = Stack(site)
        tokenizers, _, gateway = stack.start_all(counters=2)
        yield stack
        for process in (gateway, stack.counters, tokenizers):
            process.stop()
            assert process.exit_code() == 0, process.output
            assert "Traceback" not in process.output


def test_each_role_is_a_process_of_its_own_and_python_calls_without_the_code(running: Stack, tmp_path: Path) -> None:
    stack = running
    answer = stack.post("one two")
    assert answer["words"] == 2
    wait_until(
        lambda: len({stack.post("x")["pid"] for _ in range(20)}) == 2,
        description="both replicas of Counter take calls",
    )
    caller = stack.python(CALL, tmp_path / "elsewhere")
    assert caller.wait() == 0, caller.output
    by_graph, direct = (json.loads(line) for line in caller.stdout.splitlines())
    assert (by_graph["words"], direct["words"]) == (3, 1)


@pytest.mark.long  # tests/wire/test_signing.py has that both are accepted meanwhile
def test_the_key_is_changed_role_by_role_while_requests_are_answered(site: Site) -> None:
    stack, other_port = Stack(site), free_port()
    old, new = "the-old-key-of-this-test", "the-new-key-of-this-test"
    stack.env |= {"QSERVE_SECRET_KEY": old, "QSERVE_ACCEPTED_KEYS": new}
    tokenizers, counter, gateway = stack.start_all()

    stack.env |= {"QSERVE_SECRET_KEY": new, "QSERVE_ACCEPTED_KEYS": old}
    newer = stack.gateway(other_port)
    wait_until(lambda: stack.answers(other_port), description="what the new key signed is taken")
    counter.stop()
    stack.worker_of("Counter")
    assert stack.answers() and stack.answers(other_port)  # a replica of either key in each request
    assert stack.deploy().wait() == 0
    assert stack.answers() and stack.answers(other_port)

    stack.env |= {"QSERVE_SECRET_KEY": "the-key-of-a-stranger", "QSERVE_ACCEPTED_KEYS": ""}
    stranger = stack.gateway(free_port())
    stranger.wait_for("application 'default' is not served: a message is signed with a key that is not known here")
    for process in (tokenizers, gateway, newer):
        assert process.exit_code() is None


@pytest.mark.long  # tests/faults/test_unreachable_broker.py has a stack without a broker at first
def test_the_roles_may_start_in_any_order(site: Site) -> None:
    stack = Stack(site)
    gateway = stack.gateway()
    deploy = stack.deploy()
    deploy.wait_for("0/1 starting")

    stack.worker_of("Counter")
    stack.worker_of("Tokenizer")

    assert deploy.wait() == 0, deploy.output
    for name in ("Counter", "Tokenizer"):
        assert [name, "1/1", "ready"] in [line.split() for line in deploy.stdout.splitlines()]
    wait_until(stack.answers, description="requests are answered")
    assert gateway.exit_code() is None


@pytest.mark.long  # tests/faults/test_releases.py has it under load
def test_requests_wait_for_workers_that_are_restarted(running: Stack) -> None:
    stack = running
    before = counters_of(stack)
    stack.counters.stop()
    url = f"http://127.0.0.1:{stack.port}/"
    post = f"import urllib.request as u; print(u.urlopen('{url}', b'\"a b\"', timeout=20).read().decode())"
    waiting = stack.site.start([sys.executable, "-c", post])

    stack.counters = stack.worker_of("Counter", 2)

    assert waiting.wait() == 0, waiting.output
    answer = json.loads(waiting.stdout)
    assert answer["words"] == 2
    assert answer["pid"] not in before


def counters_of(stack: Stack) -> set[int]:
    """The processes of the two replicas of Counter."""
    return wait_until(
        lambda: len(pids := {stack.post("x")["pid"] for _ in range(20)}) == 2 and pids, description="both take calls"
    )


@pytest.mark.long  # tests/faults/test_releases.py and the rows F20 and F35 have it under load
def test_a_second_deploy_switches_over_and_a_failing_one_changes_nothing(site: Site) -> None:
    stack = Stack(site)
    # workers that run whatever is deployed import the module afresh for each version
    stack.command("worker", "--name", "default")
    first = stack.deploy()
    stack.gateway()
    assert first.wait() == 0, first.output
    wait_until(stack.answers, description="requests are answered")

    site.write("shop.py", APP.replace('unit="words"', 'unit="tokens"'))
    second = stack.deploy()
    assert second.wait() == 0, second.output
    wait_until(lambda: "tokens" in stack.post("x"), description="the gateway has switched over")

    site.write("shop.py", APP.replace("self.unit = unit", "raise OSError('disk gone')"))
    third = stack.deploy()
    assert third.wait() == 1, third.output
    assert "OSError: disk gone" in third.stderr
    assert "tokens" in stack.post("x")


def test_a_worker_for_a_deployment_that_does_not_exist_says_so(running: Stack) -> None:
    wrong = running.worker_of("Nobody")

    wrong.wait_for("Nobody")
    assert "Counter" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    wrong.stop()


# tests/machine/test_running.py has what is said where no broker is named
@pytest.mark.parametrize(
    "role", [*(pytest.param(role, marks=pytest.mark.long) for role in ("deploy", "worker")), "gateway"]
)
def test_a_role_without_a_broker_says_what_to_set(site: Site, role: str) -> None:
    site.write("shop.py", APP)
    arguments = [] if role == "gateway" else ["shop:app"]

    process = site.qserve(role, *arguments)

    assert process.wait() != 0
    said = process.stderr.strip().splitlines()
    assert len(said) == 1, said
    assert "QSERVE_BROKER_URL" in said[0] or "--broker" in said[0]


def celery(stack: Stack, *command: str) -> Process:
    """Run Celery's command line against the stack's broker, to its end."""
    program = [sys.executable, "-m", "celery", "-A", "qserve_workers.app", *command]
    process = stack.site.start(program, env=stack.env)
    process.wait()
    return process


@pytest.fixture
def control(running: Stack) -> Iterator[Control]:
    """Celery's remote control of the stack, in this process."""
    with make_celery(Settings.from_env(running.env)) as app:
        yield app.control


def inspect(control: Control, what: str) -> dict[str, Any]:
    """Ask all three replicas, again if one is late, and return their answers by their names."""

    def ask() -> dict[str, Any] | None:
        found: dict[str, Any] = getattr(control.inspect(timeout=2, limit=3), what)() or {}
        return found if len(found) == 3 else None

    answers = wait_until(ask, description=f"three replicas answer {what}")
    assert answers is not None
    return answers


def test_celery_sees_the_replicas_of_the_broker(running: Stack, control: Control) -> None:
    stack = running
    ping, stats, queues = (inspect(control, what) for what in ("ping", "stats", "active_queues"))
    command = celery(stack, "inspect", "ping", "--json", "--timeout", "10")
    assert set(json.loads(command.stdout)) <= set(ping), command.output

    assert sorted(name.split(".")[1].split("-")[0] for name in ping) == ["Counter", "Counter", "Tokenizer"]
    assert all(answer == {"ok": "pong"} for answer in ping.values())
    assert set(stats) == set(queues) == set(ping)
    assert len({one["pid"] for one in stats.values()}) == 3
    assert all(queue["name"].endswith((":Counter", ":Tokenizer")) for one in queues.values() for queue in one)
    assert stack.post("a b")["words"] == 2


@pytest.mark.long  # tests/faults/test_replica_ends.py has it
def test_a_replica_that_celery_shuts_down_ends_and_another_one_takes_its_place(
    running: Stack, control: Control
) -> None:
    stack = running
    before = counters_of(stack)
    name = next(name for name in inspect(control, "ping") if ".Counter-" in name)

    celery(stack, "control", "shutdown", "--destination", name, "--timeout", "1")

    wait_until(lambda: stack.post("x")["pid"] not in before, description="another replica answers")
    assert "died (it was stopped by a signal or by remote control)" in stack.counters.stderr


def test_control_is_answered_over_a_new_connection_when_the_old_one_was_lost(running: Stack, control: Control) -> None:
    with contextlib.closing(connect(running.env["QSERVE_BROKER_URL"])) as client:
        client.client_kill_filter(_type="normal", skipme=True)

    inspect(control, "ping")


@pytest.mark.long  # tests/e2e/test_run_command.py has a run with a named broker
def test_run_uses_a_named_broker_and_ends_without_touching_it(site: Site) -> None:
    stack = Stack(site)
    process = stack.command("run", "shop:app", "--port", str(stack.port))
    process.wait_for(READY)
    assert stack.post("a b c")["words"] == 3

    process.press_ctrl_c()

    assert process.wait() == 0, process.output
    wait_until(lambda: len(site.processes()) == 1, description="only the broker is left")
    (broker,) = site.processes().values()
    assert "valkey-server" in broker or "redis-server" in broker
