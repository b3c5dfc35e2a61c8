"""The tests of the function library notice every mistake that is made in it on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import MUTANTS, Mutant

pytestmark = [pytest.mark.slow, pytest.mark.long]
TESTS = Path(__file__).parents[1]
FILES = (
    "broker/test_functions.py",
    "broker/test_stored_values.py",
    "broker/test_copies.py",
    "broker/test_upkeep.py",
    "deploy/test_dead_letters.py",
    "broker/test_writes_come_last.py",
)
"""These take 15 ms each; what the state machine notices by itself, ``make mutants`` tells."""

Noticed = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Noticed:
    """Which test noticed which mistake, and which libraries could not even be loaded."""
    report = tmp_path_factory.mktemp("mutants") / "report.json"
    command = [sys.executable, "-m", "pytest", "-p", "mutants"]
    command += ["-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:cloudcoil"]
    command += [
        "-q",
        "--tb=no",
        "-o",
        "addopts=",
        "--mutation-report",
        str(report),
        *(str(TESTS / name) for name in FILES),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ended = subprocess.run(
        command, env={**environment, "PYTHONPATH": str(TESTS / "broker")}, capture_output=True, text=True, check=False
    )
    assert report.exists(), ended.stdout + ended.stderr
    read: Noticed = json.loads(report.read_text())
    return read


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mistake_in_the_library_is_noticed(mutant: Mutant, found: Noticed) -> None:
    assert mutant.name not in found["broken"], "the library with this mistake cannot be loaded, which proves nothing"
    assert mutant.name in found["noticed"], f"no test fails when {mutant.name}"


def test_a_mistake_in_text_that_is_no_longer_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="'outdated': 'gone' occurs 0 times in the library"):
        Mutant("outdated", "gone").apply("'qserve_commit_1'\nend }\n")
    with pytest.raises(ValueError, match="occurs 2 times in commit"):
        Mutant("twofold", "z", within="commit").apply("z\n'qserve_commit_1'\n  z z\nend }\nz")
