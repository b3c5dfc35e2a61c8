"""A scaling policy runs in a process of its own: it may hang or end, and the supervisor goes on."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import redis
from processes import wait_until
from qserve_workers.supervisor import policies
from qserve_workers.supervisor.offer import Capacity
from qserve_workers.supervisor.policies import ANSWER_WITHIN_S, PolicyHost
from qserve_workers.supervisor.supervisor import Supervisor

from qserve.base import forks, import_path
from qserve.base.keyring import Keyring
from qserve.base.settings import Settings
from qserve.deploy.installation import Installation
from qserve.deploy.registration import POLICY, pack_code
from qserve.deploy.sources import Sources
from qserve.fleet.values import Asked
from qserve.wire.application import ApplicationRecord, DeploymentRecord, Scaling
from qserve.wire.fleet import HostRecord

pytestmark = pytest.mark.slow
KEYS = Keyring(b"the-key-of-this-test")
RULES = """
import os, time

def more(context, by=1):
    print("said by the policy")
    return context.target_num_replicas + by, {"pid": os.getpid(), "before": context.policy_state}

def fails(context):
    raise ValueError("no rule for this")

def hangs(context):
    while True:
        time.sleep(1)

def ends(context):
    os._exit(3)

def leaves(context):
    raise SystemExit(3)

class Never:
    def __init__(self):
        raise RuntimeError("not today")
"""


class Host:
    """A supervisor's policies, with a clock of the test."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sources: Sources | None = Sources({})
        self.code = b""
        self.host = PolicyHost(lambda record: self.sources and (self.sources, self.code), KEYS, lambda: self.now)

    def ask(self, policy: str, arguments: str = "{}", **told: Any) -> Asked | None:
        scaling = Scaling(policy=f"rules_of_this_test:{policy}", policy_kwargs=arguments)
        record = ApplicationRecord(
            "shop", "v", "A", target="shop:app", deployments={"A": DeploymentRecord("A", scaling=scaling)}
        )
        context = {"deployment_name": "A", "app_name": "shop", "current_num_replicas": 2, "target_num_replicas": 2}
        return self.host(record, "A", {**context, **told})

    def answer(self, policy: str, arguments: str = "{}", **told: Any) -> Asked:
        found: list[Asked] = []
        wait_until(
            lambda: found.extend(filter(None, [self.ask(policy, arguments, **told)])) or found, description="an answer"
        )
        return found[0]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    (tmp_path / "rules_of_this_test.py").write_text(RULES)
    monkeypatch.setattr(import_path, "_folders", [str(tmp_path)])
    # a supervisor has no event loop; one that another test has left would end the child as a fork of user code
    monkeypatch.setattr(forks, "_leavers", WeakSet())
    host = Host()
    yield host
    host.host.keep(())
    assert host.host.pids == set()


def test_a_policy_answers_from_a_process_of_its_own(host: Host) -> None:
    first = host.answer("more", policy_state={"seen": 1})
    second = host.answer("more")

    assert (first.count, first.state["before"]) == (3.0, {"seen": 1})
    assert first.state["pid"] in host.host.pids
    assert second.state["pid"] == first.state["pid"] != os.getpid()
    assert host.answer("more", '{"by": 5}').count == 7


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ("fails", "ValueError: no rule for this"),
        ("leaves", "SystemExit: 3"),
        ("Never", "RuntimeError: not today"),
        ("missing", "TargetError: module 'rules_of_this_test' has no 'missing'"),
        ("ends", "its process has ended"),
    ],
)
def test_a_policy_that_fails_says_why(host: Host, policy: str, why: str) -> None:
    assert why in host.answer(policy).error


def test_a_policy_that_hangs_is_ended_and_tried_again_later(host: Host) -> None:
    host.answer("more")
    assert host.ask("hangs") is None
    [pid] = host.host.pids

    host.now += 30
    assert host.ask("hangs") == Asked(error="it has not answered for 30 s")
    assert host.host.pids == set()

    assert (host.ask("hangs"), host.host.pids) == (None, set())
    host.now += 2
    assert host.ask("hangs") is None
    assert host.host.pids not in (set(), {pid})


def test_one_that_has_answered_before_has_less_time(host: Host) -> None:
    host.answer("more")
    [pid] = host.host.pids
    os.kill(pid, signal.SIGSTOP)
    while host.ask("more") is not None:  # it may have answered once more
        pass

    host.now += ANSWER_WITHIN_S

    assert host.ask("more") == Asked(error="it has not answered for 5 s")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"[" * 1000 + b"\n", "something else than answers"),
        (b'{"count": "7", "state": {}}\n', "something else than answers"),
        (b'{"count": NaN, "state": {}}\n', "something else than answers"),
        (b'{"count": 7}\n', "something else than answers"),
        (b"[" * 140_000, "more than an answer"),
    ],
)
def test_anything_else_than_an_answer_ends_the_process(
    host: Host, data: bytes, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(connection: socket.socket, *rest: Any) -> None:
        connection.sendall(data)
        time.sleep(60)
        os._exit(0)

    monkeypatch.setattr(policies, "_serve", send)

    assert host.answer("more").error == f"its process sends {why}"
    assert host.host.pids == set()


def test_without_the_code_there_is_nothing_to_ask(host: Host) -> None:
    host.sources = None

    assert host.ask("more") == Asked(error="no worker that has its code leads")
    assert host.ask("more") is None
    assert (host.host.pids, host.host.lacking, host.host.versions) == (set(), {("shop", "v")}, {("shop", "v")})
    host.sources = Sources({})
    host.now += 60
    host.answer("more")
    assert host.host.lacking == set()


def test_a_policy_may_travel_with_the_code_of_a_program(host: Host) -> None:
    def of_the_program(context: Any, by: int = 1) -> tuple[int, dict[str, Any]]:
        return by, {}

    host.code = pack_code({}, KEYS, {("A", POLICY): of_the_program})
    assert host.answer("not_in_the_module", '{"by": 7}').count == 7

    host.code = pack_code({}, KEYS, {("B", POLICY): of_the_program})  # it was given by its path
    assert host.answer("more").count == 3


def test_a_process_that_has_ended_is_not_killed_by_its_number(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.answer("more")
    [pid] = host.host.pids
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    host.host.note_end(pid)
    killed: list[int] = []
    monkeypatch.setattr(policies.os, "kill", lambda pid, number: killed.append(pid))

    host.host.keep(())

    assert (killed, host.host.pids) == ([], set())


def scaled(**changes: Any) -> ApplicationRecord:
    scaling = Scaling(1, 3, upscale_delay_s=0, policy="rules_of_this_test:more")
    return ApplicationRecord("shop", "v", "A", deployments={"A": DeploymentRecord("A", scaling=scaling)}, **changes)


def test_the_worker_that_leads_runs_what_a_policy_asks_for(
    host: Host, settings: Settings, client: redis.Redis, children: list[int]
) -> None:
    installation = Installation(settings, client)
    supervisor = Supervisor(settings, capacity=Capacity(places=9), fork=lambda spec: spawn(children))
    installation.registry.stage(scaled())
    installation.registry.promote(scaled())

    wait_until(lambda: supervisor.tick() or len(children) == 3, description="as many as the policy asks for")

    assert installation.fleet.scaled("shop")["A"].reason == "its policy asks for 3"
    [pid] = supervisor._policies.pids
    supervisor._offer._leadership.lose()
    supervisor._offer._leadership._due_at = inf
    supervisor.tick()
    assert supervisor._policies.pids == set()
    wait_until(lambda: supervisor.tick() or not is_alive(pid), description="the policy has ended with the lead")


def test_a_worker_without_the_code_of_a_policy_lets_one_lead_that_has_it(
    host: Host, settings: Settings, client: redis.Redis, children: list[int]
) -> None:
    installation = Installation(settings, client)
    here = scaled(target="nowhere:app", code_version="of another image")
    installation.registry.stage(here)
    installation.registry.promote(here)
    supervisor = Supervisor(settings, fork=lambda spec: spawn(children))
    installation.fleet.offer(HostRecord("b-1", "b", 4))
    supervisor.tick()
    assert supervisor._offer._leadership.mine  # there is nobody better

    installation.fleet.offer(HostRecord("b-1", "b", 4, has=("shop:v",)))
    supervisor._offer._resign_at = 0.0
    supervisor.tick()
    supervisor.tick()

    assert not client.exists(installation.keys.lead)
    assert "no worker that has its code leads" in installation.fleet.scaled("shop")["A"].reason
    assert children == []


def spawn(children: list[int]) -> int:
    children.append(os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "60"))
    return children[-1]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def children() -> Iterator[list[int]]:
    """Processes in the place of replicas."""
    made: list[int] = []
    yield made
    for pid in made:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
