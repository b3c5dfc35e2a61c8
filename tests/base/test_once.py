"""What several processes of a role meet is said once, by one of them, with its end."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from qserve.base import once
from qserve.base.process import set_title
from qserve.base.turns import Turns
from qserve.exceptions import BrokerUnavailable


@pytest.fixture(autouse=True)
def _board(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(once, "_board", None)
    yield
    if once._board is not None:
        once._board.close()


REPLICAS = """
import logging, os, sys
from qserve.base import once
from qserve.base.turns import Turns
from qserve.exceptions import BrokerUnavailable

logging.basicConfig(stream=sys.stdout, format="%(message)s")
once.share()
for number in range(32):  # one after the other, each in a process of its own: all fail, and then all succeed
    turns = [Turns("reading the queue", logging.getLogger()) for _ in range(2)]
    ends, goes_on = os.pipe(), os.pipe()
    if os.fork() == 0:
        for error in (BrokerUnavailable("away"), BrokerUnavailable("away"), LookupError("no group")):
            for one in turns:
                one.note(error)
        for one in turns:
            one.recover()
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


def test_32_replicas_say_what_they_all_meet_once_with_its_end() -> None:
    done = subprocess.run([sys.executable, "-c", REPLICAS], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line for line in lines if "away" in line] == ["reading the queue failed: away; trying again"]
    assert [line for line in lines if "no group; " in line] == ["reading the queue failed: no group; trying again"]
    assert len([line for line in lines if "again after" in line]) == 1


def test_of_two_that_meet_something_at_the_same_moment_one_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    once.share()
    assert once._board is not None
    untouched, found = once._board[:], list[bool]()

    def go_on(seconds: float) -> None:
        """The other one has looked before the first one wrote, and writes now."""
        assert once._board is not None
        monkeypatch.setattr(once.time, "sleep", lambda seconds: None)
        once._board[:] = untouched
        found.append(once.may_say("the connection is lost", 60.0, speaker=2))

    monkeypatch.setattr(once.time, "sleep", go_on)

    assert not once.may_say("the connection is lost", 60.0, speaker=1)
    assert found == [True]


def test_another_process_says_it_when_the_first_has_gone_silent() -> None:
    once.share()
    assert once.may_say("the broker is away", 0.0, speaker=1)
    assert once.may_say("the broker is away", 600.0, speaker=2)
    assert not once.may_say("the broker is away", 600.0, speaker=1)
    assert once.may_say("the broker is away", 600.0, speaker=2), "it goes on with what it has begun"
    assert once.may_say("something else", 600.0, speaker=1)


def test_without_other_processes_each_loop_says_what_it_meets(caplog: pytest.LogCaptureFixture) -> None:
    for what in ("one", "two"):
        Turns(what, logging.getLogger("qserve.test")).note(BrokerUnavailable("away"))
    assert caplog.messages == [f"{what} failed: away; trying again" for what in ("one", "two")]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems show the command line")
@pytest.mark.parametrize("title", ["qserve worker", "qserve replica " + "x" * 10_000, "qserve schön"])
def test_a_title_takes_the_place_of_the_arguments_and_leaves_the_environment(title: str) -> None:
    program = "import sys; from qserve.base.process import set_title; set_title(sys.argv[1]); input()"
    command = [sys.executable, "-c", program, title]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, "MARK": "here"}) as process:
        assert process.stdin is not None
        room = sum(len(os.fsencode(part)) + 1 for part in command) - 1

        def of(name: str) -> bytes:
            with open(f"/proc/{process.pid}/{name}", "rb") as file:  # noqa: PTH123
                return file.read()

        try:
            while not (shown := of("cmdline")).startswith(b"qserve"):
                assert process.poll() is None
            assert shown.rstrip(b"\0") == title.encode()[:room]
            assert b"MARK=here" in of("environ").split(b"\0")
        finally:
            process.stdin.write(b"\n")
    assert process.returncode == 0
    assert callable(set_title)
