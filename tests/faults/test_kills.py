"""The program that kills parts of qserve under load and counts: it runs, and qserve loses nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import Site

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "kills.py"


def figures(site: Site, fault: str) -> dict[str, Any]:
    """What one round of a fault did to qserve."""
    out = site.folder / "kills.json"
    chosen = ["--only", "qserve", "--faults", fault, "--rounds", "1", "--cap-s", "20"]
    program = site.start([sys.executable, str(PROGRAM), *chosen, "--json", str(out)])
    assert program.wait() == 0, program.output
    assert "| qserve |" in program.stdout
    (row,) = json.loads(out.read_text())
    return dict(row)


@pytest.mark.long  # the row F1 has the same fault; this one is about the program
@pytest.mark.slow
def test_a_killed_replica_costs_no_request_and_runs_only_its_own_calls_again(site: Site) -> None:
    row = figures(site, "replica")

    assert row["sent"] > 100
    assert row["failed"] == {} and row["lost"] == 0
    assert row["normal_s"][0] is not None, "no other replica came for the one that was killed"
    assert len(row["answered_s"]) == row["caught"]
    assert row["ran_twice"] <= row["caught"]


@pytest.mark.long  # the rows F20 and F50 have releases under load; this one is about the program
def test_the_programs_own_update_reaches_every_replica_without_a_failed_request(site: Site) -> None:
    row = figures(site, "update")

    assert row["failed"] == {} and row["ran_twice"] == 0
    assert row["normal_s"][0] is not None
