"""A scaling policy runs in a process of its own: it may hang or end, and the supervisor goes on."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
from processes import wait_until
from qserve_workers.supervisor import policies
from qserve_workers.supervisor.policies import ANSWER_WITHIN_S, PolicyHost

from qserve.base import forks, import_path
from qserve.deploy.sources import Sources
from qserve.fleet.values import Asked
from qserve.wire.application import ApplicationRecord, DeploymentRecord, Scaling

pytestmark = pytest.mark.slow
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
        self.host = PolicyHost(lambda record: self.sources, lambda: self.now)

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
    assert host.host.pids == set()
