"""What `make release` makes besides the distributions: notes, and what they must say before there is a release."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from environments import ROOT
from release import notes, write_digests

CHANGELOG = """\
# Changelog

## 0.2.0 (2027-01-31)

### Added

- A thing (with a remark).

## 0.1.0 (unreleased)

- The first.
"""


def test_the_notes_are_the_section_of_the_version() -> None:
    assert notes(CHANGELOG, "0.2.0") == "qserve 0.2.0\n\n### Added\n\n- A thing (with a remark).\n"


def test_a_version_without_a_day_is_a_draft() -> None:
    with pytest.raises(SystemExit, match=r"says '## 0.1.0 \(unreleased\)': write the day of the release there"):
        notes(CHANGELOG, "0.1.0")

    assert notes(CHANGELOG, "0.1.0", draft=True) == "qserve 0.1.0\n\n- The first.\n"


def test_a_version_that_the_changelog_does_not_have_is_named() -> None:
    with pytest.raises(SystemExit, match=r"no section '## 0.3.0 \(DATE\)'; it has 0.2.0, 0.1.0"):
        notes(CHANGELOG, "0.3.0")


def test_the_changelog_of_the_project_can_be_released() -> None:
    text = notes((ROOT / "CHANGELOG.md").read_text(), "0.1.0", draft=True)

    assert "### Added" in text and "### Changed" in text


def test_digests_are_those_that_sha256sum_checks(tmp_path: Path) -> None:
    (tmp_path / "b.whl").write_bytes(b"wheel")

    write_digests(tmp_path)
    write_digests(tmp_path)  # its own file of before does not count

    assert (tmp_path / "SHA256SUMS").read_text() == f"{hashlib.sha256(b'wheel').hexdigest()}  b.whl\n"
