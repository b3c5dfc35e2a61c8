"""The versions that images are built with fit the bounds of setup.cfg, and none is missing."""

from __future__ import annotations

import configparser

import pytest
from constraints import EXTRAS, FILE
from environments import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CONFIG = configparser.RawConfigParser()
CONFIG.read(ROOT / "setup.cfg")
PINS = {
    canonicalize_name(name): version
    for name, version in (line.split("==") for line in FILE.read_text().split("\n")[1:-1])
}
BOUNDS = CONFIG["options"]["install_requires"].split("\n") + [
    line for extra in EXTRAS for line in CONFIG["options.extras_require"][extra].split("\n")
]


@pytest.mark.parametrize("bound", [bound for bound in BOUNDS if bound])
def test_each_requirement_has_a_version_that_fits(bound: str) -> None:
    requirement = Requirement(bound)

    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])
