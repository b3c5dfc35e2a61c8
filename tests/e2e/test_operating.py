"""Operating what runs on two hosts: scale, drain and follow its logs, with the commands that an operator types."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import subprocess
import termios
from collections.abc import Iterator
from typing import Any

import pytest
from commands import told, typed
from processes import QSERVE, Process, new_site, wait_until
from roles import Roles

from qserve.base.settings import Settings
from qserve.calls.client import ClientPlane
from qserve.calls.ref import Call

SOURCE = """
import logging, os, time
import qserve

@qserve.deployment(num_replicas=2, max_ongoing_requests=1)
class Model:
    def __call__(self, words):
        logging.getLogger("shop").warning("asked for %s", words)
        while words == "wait" and not os.path.exists("go"):
            time.sleep(0.01)
        return words

app = Model.bind()
"""
SHOP, OFFERED = "default", "4"


class Place(Roles):
    """A broker, workers that are two hosts, and a caller."""

    def operator(self, *arguments: str) -> str:
        """What a command prints, which succeeds."""
        return told(*arguments, env=self.env)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.operator("status", "--json"))
        return found

    def used(self) -> dict[str, int]:
        """How many replicas each host runs."""
        return {one["host"]: one["used"] for one in self.status()["hosts"].values()}


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with new_site() as site:
        place = Place(site, SOURCE, {"QSERVE_BROKER_URL": site.broker()})
        for host in ("a", "b"):
            place.worker("--host", host, "--places", OFFERED)
        wait_until(lambda: place.used().keys() == {"a", "b"}, description="both offer places")
        place.deploy_here()
        yield place


@pytest.fixture
def plane(place: Place) -> Iterator[ClientPlane]:
    plane = ClientPlane(
        Settings(broker_url=place.env["QSERVE_BROKER_URL"], secret_key=place.env["QSERVE_SECRET_KEY"].encode())
    )
    yield plane
    plane.close()


def ask(plane: ClientPlane, words: str) -> Any:
    return plane.submit(Call(SHOP, "Model", "__call__", (words,)))


@pytest.mark.slow
def test_scale_changes_the_number_over_all_hosts_and_the_status_says_who_did_it(place: Place) -> None:
    place.operator("scale", SHOP, "Model", "2", "--wait")

    said = place.operator("scale", SHOP, "Model", "4", "--wait")

    assert said.startswith("default/Model: 2 -> 4\n")
    assert said.endswith("4/4 run\n")
    wait_until(lambda: place.used() == {"a": 2, "b": 2}, description="two run on each host")
    shown = place.status()["applications"][SHOP]["deployments"]["Model"]
    assert (shown["status"], shown["status_trigger"]) == ("HEALTHY", "UPSCALE_COMPLETED")
    assert shown["last_scaled"]["count"] == 4
    assert shown["last_scaled"]["reason"].endswith("with `qserve scale`")


@pytest.mark.slow
def test_a_drained_host_is_emptied_and_no_request_fails(place: Place, plane: ClientPlane) -> None:
    place.operator("scale", SHOP, "Model", "2", "--wait")
    wait_until(lambda: place.used() == {"a": 1, "b": 1}, description="one runs on each host")
    held = [ask(plane, "wait") for _ in range(2)]  # one at each host
    model = lambda: place.status()["applications"][SHOP]["deployments"]["Model"]  # noqa: E731
    wait_until(lambda: model()["running_calls"] == 2, description="both replicas are busy")

    drain = place.command("drain", "a")
    drain.wait_for("still there: 1 of default/Model")
    assert [ask(plane, f"{number}").result(60) for number in range(20)] == [f"{number}" for number in range(20)]
    assert place.used() == {"a": 1, "b": 2}  # a new one took these calls, before the one at a has ended
    place.site.write("go", "")

    assert (drain.wait(), [ref.result(60) for ref in held]) == (0, ["wait", "wait"])
    assert drain.stdout.endswith("a: empty\n")
    assert place.used() == {"a": 0, "b": 2}
    assert ", draining" in next(line for line in place.operator("status").splitlines() if "worker a-" in line)
    last = typed("drain", "b", env=place.env)
    assert (last.exit_code, last.stdout) == (2, "")
    assert "'b' is the last that offers places for application 'default'" in last.stderr
    assert place.operator("drain", "a", "--undo") == "a: takes replicas again\n"
    place.operator("scale", SHOP, "Model", "6", "--wait")
    assert place.used()["a"] >= 2


@pytest.mark.slow
def test_logs_follows_the_replicas_of_both_hosts(place: Place, plane: ClientPlane) -> None:
    follow: Process = place.command("logs", SHOP, "Model", "-f")
    for number in range(20):
        ask(plane, f"line {number} to follow").result(60)

    follow.wait_for("line 19 to follow")
    follow.press_ctrl_c()
    assert follow.wait() == 0, follow.output
    kept = place.operator("logs", SHOP, "-n", "1000")
    assert all(f"asked for line {number} to follow" in kept for number in range(20))


@pytest.mark.slow
def test_top_shows_rates_once_or_once_a_second_and_ends_with_a_key(place: Place, plane: ClientPlane) -> None:
    def row() -> dict[str, Any]:
        for number in range(10):
            ask(plane, f"{number}").result(60)
        (found,) = json.loads(place.operator("top", SHOP, "--once", "--json"))["deployments"]
        return found

    wait_until(lambda: row()["rate"], description="the rate of what was called is known")
    assert (row()["application"], row()["name"], row()["replicas"]["RUNNING"]) == (SHOP, "Model", row()["wanted"])
    assert "default/Model" in place.operator("top")  # there is no terminal
    wrong = typed("top", "defolt", env=place.env)
    assert (wrong.exit_code, "Did you mean 'default'" in wrong.stderr) == (2, True)

    lines = place.command("top", "--json")
    wait_until(lambda: lines.stdout.count("\n") > 1, description="two lines were printed")
    lines.stop()
    assert all(json.loads(line)["broker"]["is_up"] for line in lines.stdout.splitlines()[:2])


@pytest.mark.slow
# Ctrl-C ends it as q does, from the same loop
@pytest.mark.parametrize("key", [b"q", pytest.param(b"\x03", marks=pytest.mark.long)])
def test_top_draws_over_what_it_has_drawn_and_gives_the_terminal_back(place: Place, key: bytes) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 80))
    before = termios.tcgetattr(theirs)
    with subprocess.Popen(
        [*QSERVE, "top"], stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, **place.env},
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:  # fmt: skip
        text = b""

        def has_drawn() -> bool:
            nonlocal text
            if select.select([ours], [], [], 0)[0]:
                text += os.read(ours, 65536)
            return text.count(b"\x1b[H") > 1

        wait_until(has_drawn, description="it was drawn twice")
        os.write(ours, key)
        wait_until(lambda: has_drawn() and process.poll() is not None, description="it ends")
        assert process.returncode == 0
    text += os.read(ours, 65536) if select.select([ours], [], [], 0)[0] else b""
    assert text.startswith(b"\x1b[?1049h") and text.rstrip().endswith(b"\x1b[?1049l")
    assert b"default/Model" in text
    assert text.count(b"\x1b[2J") == 0
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)
