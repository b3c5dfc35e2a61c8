"""The table of names agrees with what qserve has, and with the documentation."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import qserve
from qserve.base import unused
from qserve.porting import table
from qserve.porting.move import move
from qserve.porting.names import TO_QSERVE, TO_RAY

DOCUMENT = Path(__file__).parents[2] / "docs" / "ray-parity.md"
LISTING = re.findall(r"^(.+?) +-> +(.+)$", re.search(r"```\n(.*?)```", DOCUMENT.read_text(), re.S)[1], re.M)  # type: ignore[index]
TARGETS = sorted({target for found in TO_QSERVE.names.values() for target in found})


@pytest.mark.parametrize(("module", "name"), TARGETS)
def test_every_name_that_is_written_can_be_imported(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


def test_every_public_name_of_qserve_can_go_to_ray_or_says_why_not() -> None:
    known = {*TO_RAY.names, *table.OWN}

    assert not [name for name in qserve.__all__ if f"qserve.{name}" not in known and name != "__version__"]


@pytest.mark.parametrize("module", ["config", "deployment_graph", "drivers", "handle", "schema", "task_consumer"])
def test_the_names_of_a_module_that_has_those_of_ray_are_in_the_table(module: str) -> None:
    """But for qserve's own: classes that programs do not name."""
    text = Path(importlib.import_module(f"qserve.{module}").__file__ or "").read_text()
    names = {*re.findall(r"import \w+ as (\w+)", text), *re.findall(r"^(?:class|def) (\w+)", text, re.M)}

    assert not {name for name in names - {"Ref", "RefTask"} if f"qserve.{module}.{name}" not in TO_RAY.names}


def test_no_name_is_both_moved_and_left() -> None:
    assert not {*table.LEFT} & {*TO_QSERVE.names}


@pytest.mark.parametrize("name", sorted(unused.NAMES))
def test_a_name_that_qserve_refuses_with_advice_is_left_with_advice(name: str) -> None:
    if name not in ("metrics", "util"):  # modules, whose names move
        found = [TO_QSERVE.moved(f"{module}.{name}") for module in ("ray", "ray.serve")]
        assert not [one.name for one in found if one.name is not None]
        assert any(one.advice is not table.UNKNOWN for one in found)


def test_the_listing_of_imports_in_the_documentation_has_lines() -> None:
    assert len(LISTING) >= 9


@pytest.mark.parametrize(("before", "after"), LISTING)
def test_the_documentation_says_what_the_command_does(before: str, after: str) -> None:
    if before.startswith("from "):
        assert move(f"{before}\n", TO_QSERVE).text == f"{after}\n"
    elif "(" in before:
        assert move(f"import ray\n{before}\n", TO_QSERVE).text == f"import qserve\n{after}\n"
    else:
        first, *others = before.split(", ")
        names = [first, *(f"{first.rpartition('.')[0]}.{name}" for name in others)]
        assert {TO_QSERVE.moved(name).module for name in names} == {after}
