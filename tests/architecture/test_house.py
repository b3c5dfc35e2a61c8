"""How `tools/house.py` counts imports, shown with small made-up sources."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import house

KNOWN = {
    "qserve",
    "qserve.base",
    "qserve.base.keys",
    "qserve.calls",
    "qserve.calls.items",
    "qserve.calls.ref",
    "qserve_workers.celery.consumer",
    "qserve_gateway.command",
}


def targets(text: str, module: str = "qserve.calls.items", is_package: bool = False) -> set[str]:
    return {arrow.target for arrow in house.imports_of(module, text, KNOWN, is_package)}


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("import qserve.base.keys", "qserve.base.keys"),
        ("from qserve.base import keys", "qserve.base.keys"),
        ("from qserve.base.keys import Keys", "qserve.base.keys"),
        ("from qserve import run", "qserve"),
        ("from .ref import Ref", "qserve.calls.ref"),
        ("from . import ref", "qserve.calls.ref"),
        ("from ..base.keys import Keys", "qserve.base.keys"),
        ("def call():\n    from qserve.base.keys import Keys", "qserve.base.keys"),
        ("class A:\n    import qserve.base.keys", "qserve.base.keys"),
        ("if TYPE_CHECKING:\n    from qserve.base.keys import Keys", "qserve.base.keys"),
        ("try:\n    import qserve.base.keys\nexcept ImportError:\n    pass", "qserve.base.keys"),
        ("import_module('qserve.base.keys').Keys", "qserve.base.keys"),
        ("HOMES = {'Keys': 'qserve.base.keys'}", "qserve.base.keys"),
        ("COMMANDS = {'run': 'qserve.base.keys:Keys.of'}", "qserve.base.keys"),
        ("conf(worker_consumer='qserve_workers.celery.consumer:AsyncConsumer')", "qserve_workers.celery.consumer"),
        ("import_module('..base.keys', __package__)", "qserve.base.keys"),
        ("import_module('.base.keys', package='qserve')", "qserve.base.keys"),
        ("__import__('base.keys', globals(), locals(), [], 2)", "qserve.base.keys"),
        ("__import__('base', globals(), locals(), ['keys'], level=2)", "qserve.base.keys"),
        ("exec('from qserve.base import keys')", "qserve.base.keys"),
        ("symbol_by_name('qserve_workers.celery.consumer.AsyncConsumer')", "qserve_workers.celery.consumer"),
    ],
)
def test_an_import_is_counted_wherever_and_however_it_is_written(text: str, target: str) -> None:
    assert targets(text) == {target}


@pytest.mark.parametrize(
    "text",
    [
        "import os, celery.app",
        "from redis import Redis",
        "'the keys are in qserve.base.keys, see there'",
        "get_logger('qserve.access')",
        "import qserve.calls.items",
    ],
)
def test_what_imports_no_module_of_ours_is_not_counted(text: str) -> None:
    assert targets(text) == set()


def test_a_relative_import_in_a_package_starts_at_the_package_itself() -> None:
    assert targets("from .ref import Ref", "qserve.calls", is_package=True) == {"qserve.calls.ref"}


def test_an_import_has_its_line() -> None:
    (arrow,) = house.imports_of("qserve.calls.items", "import os\n\nfrom qserve.base import keys", KNOWN)

    assert arrow == house.Arrow("qserve.calls.items", "qserve.base.keys", 3)


def test_entry_points_of_setup_cfg_are_counted() -> None:
    text = "[options.entry_points]\nother.group =\n    gateway = qserve_gateway.command:gateway\n    x = other:y\n"

    assert [*house.entry_points(text, KNOWN)] == [house.Arrow("qserve.__main__", "qserve_gateway.command", 0)]


@pytest.mark.parametrize(
    ("source", "target", "is_upward"),
    [
        ("qserve.calls.ref", "qserve.base.keys", False),
        ("qserve.calls.ref", "qserve.calls.items", False),
        ("qserve.base.keys", "qserve.calls.ref", True),
        ("qserve.local.run", "qserve.machine.children", True),
        ("qserve.base.keys", "qserve", True),
        ("qserve.api", "qserve.deploy.rollout", False),
    ],
)
def test_an_import_of_the_same_layer_or_a_higher_one_is_upward(source: str, target: str, is_upward: bool) -> None:
    assert bool(house.upward([house.Arrow(source, target, 1)])) is is_upward


def test_an_upward_import_is_named_with_its_path_its_line_and_the_rule() -> None:
    assert house.fault(house.Arrow("qserve.wire.moves", "qserve.define.options", 78)) == (
        "qserve/wire/moves.py:78 imports qserve.define (layer 9) from layer 3: move the code down, or pass the value in"
    )


def test_a_circle_is_found_and_named() -> None:
    circle = house.circle([house.Arrow("a", "b", 1), house.Arrow("b", "c", 2), house.Arrow("c", "a", 3)])

    assert {*circle} == {"a:1 imports b", "b:2 imports c", "c:3 imports a"}
    assert house.circle([house.Arrow("a", "b", 1), house.Arrow("a", "c", 1), house.Arrow("b", "c", 1)]) == []


def test_the_docstring_of_a_room_is_read() -> None:
    text = "Keys and\nclocks.\n\nIt may import qserve.base and\nqserve.wire.\nOpen first: keys.py, then lua/x.py.\n"

    assert house.described("qserve.calls", text) == house.Room(
        "qserve.calls", "Keys and clocks.", ("qserve.base", "qserve.wire"), ("keys.py", "lua/x.py")
    )


@pytest.mark.parametrize("text", ["", "Keys.", "Keys.\n\nOpen first: keys.py.", "Keys.\n\nIt may import qserve.base."])
def test_a_docstring_that_lacks_a_sentence_is_refused_with_its_form(text: str) -> None:
    with pytest.raises(ValueError, match=r"docstring of qserve.calls must be.*Open first"):
        house.described("qserve.calls", text)


def test_what_a_stub_names_is_counted_as_an_import() -> None:
    public = {arrow.target for arrow in house.arrows() if arrow.source == "qserve"}

    assert {"qserve.api", "qserve.define.batching"} <= public


def test_no_two_files_of_tests_have_the_same_name() -> None:
    """pytest imports each by its name alone, and collects nothing if it finds a second one."""
    names = [path.name for path in (Path(__file__).parents[1]).glob("*/test_*.py")]
    assert not {name for name in names if names.count(name) > 1}
