"""How much memory there is: the host's, or that of the control groups around this process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qserve.base import memory
from qserve.base.memory import ControlGroup, usable_bytes


def group_in(folder: Path, limits: dict[str, str]) -> ControlGroup:
    """A process in the innermost of these control groups."""
    for path, limit in limits.items():
        (folder / path).mkdir(parents=True, exist_ok=True)
        (folder / path / "memory.max").write_text(f"{limit}\n")
        (folder / path / "memory.events").touch()
    (folder / "membership").write_text(f"0::/{path}\n")
    return ControlGroup(folder / "membership", folder)


@pytest.mark.parametrize(
    ("limits", "lowest"),
    [
        ({"box": "1000"}, 1000),
        ({"slice": "500", "slice/box": "1000"}, 500),
        ({"slice": "500", "slice/box": "max"}, 500),
        ({"slice": "max", "slice/box": "max"}, None),
        ({"box": str(2**63 - 4096)}, None),
    ],
)
def test_the_lowest_limit_around_a_process_counts(tmp_path: Path, limits: dict[str, str], lowest: int | None) -> None:
    assert group_in(tmp_path, limits).limit_bytes() == lowest


def test_without_a_limit_the_host_is_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    monkeypatch.setattr(memory, "ControlGroup", lambda: group_in(tmp_path, {"box": "max"}))
    assert usable_bytes() == host

    monkeypatch.setattr(memory, "ControlGroup", lambda: group_in(tmp_path, {"box": "1000000"}))
    assert usable_bytes() == 1_000_000
