"""What `make dist` builds: the same bytes each time, every file of the packages, and no other."""

from __future__ import annotations

import configparser
import tarfile
import zipfile
from pathlib import Path

import pytest
from distributions import FULL, PARTS, SLIM, build, differences, slim
from environments import ROOT


def test_the_slim_distribution_requires_the_parts_of_its_extras_only_there_with_their_bounds() -> None:
    config = configparser.RawConfigParser()
    config.read_string(slim((ROOT / "setup.cfg").read_text()))

    required = config["options"]["install_requires"].split()
    assert config["metadata"]["name"] == SLIM
    assert "celery" in {line.partition(">=")[0] for line in required}
    for part in PARTS:
        lines = config["options.extras_require"][part].split()
        assert lines and all(">=" in line for line in lines)
        assert not set(lines) & set(required)
        assert set(lines) <= set(config["options.extras_require"]["all"].split())


def test_a_file_that_a_wheel_lacks_or_has_besides_is_named(tmp_path: Path) -> None:
    wheel = tmp_path / "qserve_celery-0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as opened:
        opened.writestr("tests/test_it.py", "")

    found = differences(wheel)

    assert "with tests/test_it.py" in found
    assert "without qserve/py.typed" in found
    assert "without qserve_gateway/static/docs.html" in found


@pytest.mark.slow
@pytest.mark.long
def test_building_twice_gives_equal_bytes(built: dict[str, list[Path]], tmp_path: Path) -> None:
    for name in (FULL, SLIM):
        for first, second in zip(built[name], build(name, tmp_path), strict=True):
            assert first.name == second.name
            assert first.read_bytes() == second.read_bytes(), first.name


@pytest.mark.slow
@pytest.mark.long
def test_each_file_of_the_packages_is_in_all_of_them(built: dict[str, list[Path]]) -> None:
    for file in [*built[FULL], *built[SLIM]]:
        assert differences(file) == []


@pytest.mark.slow
@pytest.mark.long
def test_an_sdist_does_not_say_who_packed_it_or_when(built: dict[str, list[Path]]) -> None:
    sdist = next(file for file in built[FULL] if file.suffix == ".gz")
    with tarfile.open(sdist) as opened:
        members = opened.getmembers()

    assert {(member.uid, member.gid, member.uname, member.gname) for member in members} == {(0, 0, "", "")}
    assert len({member.mtime for member in members}) == 1
    assert {oct(member.mode) for member in members} == {"0o755", "0o644"}
