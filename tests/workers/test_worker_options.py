"""What ``qserve worker`` is told of its host: by options, by variables, or by the system."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner
from processes import free_port
from qserve_workers import command
from qserve_workers.supervisor.offer import Capacity, device_names

from qserve.base.memory import usable_bytes


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Note what a worker would be started with."""
    found: list[Any] = []

    class Noted:
        def __init__(self, *given: Any) -> None:
            found.extend(given)

        def run(self) -> None: ...

    monkeypatch.setattr(command, "Supervisor", Noted)
    for name in ("_wait_for_broker", "log_to_terminal", "search_for_user_code", "set_title", "once.share"):
        monkeypatch.setattr(f"qserve_workers.command.{name}", lambda *given, **named: None)
    monkeypatch.setattr("gc.freeze", lambda: None)
    return found


def worker(*options: str, **env: str) -> Any:
    return CliRunner().invoke(command.worker, ["--broker", "redis://127.0.0.1:1", *options], env=env)


GIVEN = Capacity(3, "a-1", ("0", "1"), 1 << 30, {"disk": 2.5}, {"zone": "north", "kind": "a=b"})


@pytest.mark.parametrize(
    ("options", "env"),
    [
        (
            ["--places=3", "--devices=0,1", "--memory=1gb", "--resource=disk=2.5", "--label=zone=north"]
            + ["--label=kind=a=b"],
            {},
        ),
        (
            [],
            {
                "QSERVE_PLACES": "3",
                "QSERVE_DEVICES": "0, 1",
                "QSERVE_MEMORY": "1gb",
                "QSERVE_RESOURCES": "disk=2.5",
                "QSERVE_LABELS": "zone=north kind=a=b",
            },
        ),
    ],
)
def test_a_worker_is_told_what_it_has_by_options_or_variables(
    started: list[Any], options: list[str], env: dict[str, str]
) -> None:
    done = worker("--host=a-1", *options, **env)

    assert done.exit_code == 0, done.output
    assert started[2] == GIVEN


def test_without_options_a_worker_has_what_the_system_shows(
    monkeypatch: pytest.MonkeyPatch, started: list[Any]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5a,-1")

    worker()

    record = started[2].record("w", None)
    assert (record.devices, record.memory, record.is_soft) == (("2", "GPU-5a"), usable_bytes(), True)
    assert [device_names(text) for text in ("none", "", "0,0,1")] == [(), (), ("0", "1")]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--label", "zone"], "--label takes KEY=VALUE, got 'zone'"),
        (["--resource", "disk=many"], "--resource takes KEY=NUMBER: 'many' is not a number"),
        (["--resource", "disk=-1"], "'-1' is not a number"),
        (["--memory", "much"], "--memory: 'much' is not a size, such as 8gb"),
        (["--memory", "0gb"], "--memory must be larger than 0"),
        (["--places", "0"], "--places"),
        (["--metrics-port", "many"], "--metrics-port takes [ADDRESS:]PORT, got 'many'"),
        (["--metrics-port", "0.0.0.0:70000"], "--metrics-port takes [ADDRESS:]PORT, got '0.0.0.0:70000'"),
        (["--metrics-port", "203.0.113.1:9100"], "--metrics-port: cannot listen on 203.0.113.1:9100"),
        *(
            ([pin, f"--{name}={value}"], f"--{name} is for what is planned: leave out --deployment and --replicas, or")
            for pin in ("--replicas=1", "--deployment=A")
            for name, value in {"places": "1", "label": "a=b", "resource": "a=1", "memory": "1gb"}.items()
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(started: list[Any], options: list[str], why: str) -> None:
    done = worker(*options)

    assert done.exit_code == 2
    assert why in " ".join(done.output.split())
    assert not started


def test_a_worker_listens_for_prometheus_where_it_is_told_to_unless_nothing_is_counted(started: list[Any]) -> None:
    port = free_port()
    for env in ({"QSERVE_METRICS_PORT": str(port)}, {"QSERVE_METRICS_PORT": str(port), "QSERVE_METRICS": "0"}, {}):
        assert worker(**env).exit_code == 0

    page, *others = (one for one in started[3::4])
    assert page.getsockname() == ("127.0.0.1", port)
    page.close()
    assert others == [None, None]


def test_variables_of_a_host_do_not_keep_a_pinned_worker_from_it(started: list[Any]) -> None:
    assert worker("--replicas=1", QSERVE_PLACES="3", QSERVE_LABELS="a=b").exit_code == 0
