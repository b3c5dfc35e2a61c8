"""The restarter of child processes: what it restarts, when, and what it gives up."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from qserve.exceptions import DeployError
from qserve.machine.children import EARLY_S, MAX_EARLY, Child, Restarter


class FakeChild(Child):
    """A child process that dies when it is told to."""

    def __init__(self) -> None:
        self.code: int | None = None
        self.starts = 0
        self.cannot_start: OSError | None = None
        super().__init__("the gateway", [])

    def _spawn(self) -> Any:
        if self.cannot_start is not None:
            raise self.cannot_start
        self.starts += 1
        self.code = None

    def exit_code(self) -> int | None:
        return self.code


class Scene:
    """A restarter with one child, whose clock stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 100.0
        self.child = FakeChild()
        self.restarter = Restarter(lambda: self.now)
        self.restarter.add(self.child)

    def tick(self, passed_s: float = 0.0) -> None:
        self.now += passed_s
        self.restarter.tick()


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_child_that_runs_is_left_alone(scene: Scene) -> None:
    scene.tick(1000)

    assert scene.child.starts == 1
    scene.restarter.check()


def test_a_child_that_dies_before_all_have_served_is_an_error(scene: Scene) -> None:
    scene.child.code = 3

    with pytest.raises(DeployError, match="the gateway exited with code 3"):
        scene.restarter.check()


def test_a_child_that_has_lived_long_is_restarted_at_once(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.tick(EARLY_S + 1)
    scene.child.code = -9
    with caplog.at_level(logging.WARNING, "qserve"):
        scene.tick()

    assert scene.child.starts == 2
    assert caplog.messages == ["the gateway was killed by SIGKILL; restarting it"]


def test_a_child_that_dies_early_is_restarted_after_a_pause_that_doubles(scene: Scene) -> None:
    for pause_s in (0.1, 0.2, 0.4):
        scene.child.code = 1
        scene.tick()
        starts = scene.child.starts
        scene.tick(pause_s * 0.9)
        assert scene.child.starts == starts
        scene.tick(pause_s * 0.2)
        assert scene.child.starts == starts + 1


def test_a_child_that_dies_early_again_and_again_is_given_up(scene: Scene) -> None:
    for _ in range(MAX_EARLY):
        scene.child.code = 1
        scene.tick()
        scene.tick(10.0)
    starts = scene.child.starts
    scene.tick(1000)

    assert scene.child.starts == starts == MAX_EARLY
    with pytest.raises(DeployError, match=r"exited with code 1 \(5 times in a row within 5 s of its start\)"):
        scene.restarter.check()


def test_a_long_life_forgets_the_early_deaths_before_it(scene: Scene) -> None:
    for _ in range(MAX_EARLY - 1):
        scene.child.code = 1
        scene.tick()
        scene.tick(10.0)
    scene.tick(EARLY_S + 1)
    scene.child.code = 1
    scene.tick()
    scene.child.code = 1
    scene.tick()
    scene.tick(0.11)

    assert scene.child.starts == MAX_EARLY + 2


def test_a_start_that_fails_counts_as_an_early_death(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.tick(EARLY_S + 1)
    scene.child.code, scene.child.cannot_start = 1, OSError("no process is left")
    with caplog.at_level(logging.WARNING, "qserve"):
        scene.tick()
        scene.child.cannot_start = None
        scene.tick(0.11)

    assert scene.child.starts == 2
    assert caplog.messages[-1] == "the gateway cannot be restarted: no process is left; restarting it in 0.1 s"


def test_how_a_process_ended_is_told_in_words() -> None:
    child = Child("the worker", ["/bin/sh", "-c", "exit 4"])
    assert child.wait(10) == 4
    assert child.describe_exit() == "the worker exited with code 4"

    child.restart()
    assert child.wait(10) == 4

    killed = Child("the worker", ["/bin/sleep", "100"])
    assert killed.describe_exit() == "the worker is running"
    killed.kill()
    assert killed.describe_exit() == "the worker was killed by SIGKILL"


def test_an_error_in_watching_one_child_is_logged_once_and_the_others_are_watched(
    scene: Scene, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = FakeChild()
    other.name = "the workers' supervisor"
    scene.restarter.add(other)
    monkeypatch.setattr(scene.child, "exit_code", lambda: 1 / 0)
    for _ in range(30):
        scene.tick(0.1)
    other.code = 1
    scene.tick(EARLY_S)

    assert other.starts == 2
    assert len([record for record in caplog.records if record.exc_info]) == 1
    assert "restarting what dies (the gateway) failed: division by zero" in caplog.text

    monkeypatch.undo()
    scene.child.code = 1
    scene.tick(60.0)
    assert scene.child.starts == 2
