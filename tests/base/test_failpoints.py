"""Failpoints fire where, when and how the environment says, and are off without it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qserve.base import failpoints
from qserve.base.failpoints import POINTS, Failpoint, FailpointError
from qserve.exceptions import QserveException

ROOT = Path(__file__).parents[2]


def test_nothing_is_armed_without_the_variable() -> None:
    assert failpoints.ARMED is None
    for name in POINTS:
        failpoints.hit(name)


def test_a_failpoint_fires_at_the_named_passage_and_only_once() -> None:
    point = Failpoint("call.before:raise:3")
    fired = []
    for number in range(1, 7):
        point.hit("call.after")
        try:
            point.hit("call.before")
        except FailpointError:
            fired.append(number)

    assert fired == [3]


def test_of_all_processes_only_the_first_fires(tmp_path: Path) -> None:
    mark = tmp_path / "fired"
    first, second = Failpoint("call.before:raise", once=str(mark)), Failpoint("call.before:raise", once=str(mark))

    with pytest.raises(FailpointError):
        first.hit("call.before")
    second.hit("call.before")

    assert mark.exists()


@pytest.mark.parametrize(
    "text",
    [
        "call.before",
        "call.before:",
        "nowhere:raise",
        "call.before:explode",
        "call.before:raise:0",
        "call.before:raise:x",
    ],
)
def test_what_is_no_failpoint_is_refused_with_what_may_be_written(text: str) -> None:
    with pytest.raises(QserveException, match=r"POINT:ACTION.*call\.before.*kill9"):
        Failpoint(text)


def test_a_process_is_killed_where_the_variable_says() -> None:
    program = "from qserve.base import failpoints; print('a', flush=True); failpoints.hit('drain.mid'); print('b')"

    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"QSERVE_FAILPOINT": "drain.mid:kill9", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == -signal.SIGKILL
    assert done.stdout == "a\n"


def test_every_point_is_somewhere_in_the_code_and_every_place_is_a_point() -> None:
    hits = [
        line.partition('failpoints.hit("')[2].partition('"')[0]
        for folder in ("qserve", "workers", "gateway")
        for path in (ROOT / folder).rglob("*.py")
        for line in path.read_text().splitlines()
        if 'failpoints.hit("' in line
    ]

    assert sorted(hits) == sorted(POINTS)
