"""The docstrings of everything public: complete, and true to the signatures. The reference is made from them."""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import griffe
import pytest
from griffe import DocstringSectionKind as Kind

from qserve import exceptions
from qserve.base import unused

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import reference  # noqa: E402


def callables() -> Iterator[tuple[str, griffe.Object]]:
    for path, thing in reference.documented().items():
        yield path, thing
        yield from ((f"{path}.{one.name}", one) for one in reference.members(thing) if one.is_function)


CALLABLES = {path: thing for path, thing in callables() if not reference.is_enum(thing)}
every = pytest.mark.parametrize("path", CALLABLES)


def parts(thing: griffe.Object, kind: Kind) -> list[griffe.DocstringSection]:
    return [part for part in reference.parts_of(thing) if part.kind is kind]


@every
def test_every_parameter_is_described_and_no_other(path: str) -> None:
    thing = CALLABLES[path]
    taken = {one.name.lstrip("*") for one in reference.parameters(thing)}
    described = {name for names, _ in reference.described_parameters(thing) for name in names.split(", ")}

    assert described <= taken
    if described or path.rpartition(".")[2] not in reference.RECEIVED:
        assert described >= {name for name in taken if not name.startswith("_")}


@pytest.mark.parametrize(
    ("documented", "accepted", "others"),
    [
        ("base.settings.Settings", "base.settings.Settings", set()),
        ("define.options.DeploymentOptions", "define.options.Options", {*unused.DEPLOYMENT}),
    ],
)
def test_every_setting_and_option_is_described(documented: str, accepted: str, others: set[str]) -> None:
    described = reference.described_parameters(reference.package()[documented])
    known = {one.name for one in reference.parameters(reference.package()[accepted])}

    assert {name for names, _ in described for name in names.split(", ")} == known - others


@every
def test_what_is_returned_is_described(path: str) -> None:
    thing = CALLABLES[path]
    returns = str(thing.returns) if thing.is_function else "None"

    assert returns in ("None", "NoReturn") or parts(thing, Kind.returns)


@every
def test_there_is_an_example(path: str) -> None:
    """Functions and classes have one; methods are called in one that is on the same page."""
    thing, name = CALLABLES[path], path.rpartition(".")[2]
    page = next(
        paths.split() for _, _, paths in reference.PAGES.values() if path in paths or owner_of(path) in paths.split()
    )
    examples = reference.examples(thing)
    if path not in reference.documented():
        on_page = chain.from_iterable(reference.examples(reference.found(one)) for one in page)
        examples += [one for one in on_page if f".{name}(" in one]

    assert examples


def owner_of(path: str) -> str:
    return path.rpartition(".")[0]


@every
def test_errors_that_are_raised_are_described(path: str) -> None:
    thing = CALLABLES[path]
    described = {
        name
        for part in parts(thing, Kind.raises)
        for one in part.value
        for name in re.findall(r"\w+", str(one.annotation))
    }
    missing = {name for name in raised(thing) if not any(is_kind_of(name, known) for known in described)}

    assert not missing or path.rpartition(".")[2] in reference.RECEIVED


def raised(thing: griffe.Object) -> set[str]:
    """The errors that a function, or a constructor, raises itself or in the private functions that it calls."""
    functions = functions_of(thing.module.filepath)
    name = (
        f"{thing.name}.__init__"
        if thing.is_class
        else f"{thing.parent.name}.{thing.name}".removeprefix(f"{thing.module.name}.")
    )
    errors, called = functions.get(name, (set(), set()))
    return errors.union(*(functions[one][0] for one in called if one in functions))


@cache
def functions_of(path: Path) -> dict[str, tuple[set[str], set[str]]]:
    """The functions of a module by name: the errors that each raises, and the private functions that it calls."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    tree = ast.parse(path.read_text())
    owned = [(f"{one.name}.", inner) for one in tree.body if isinstance(one, ast.ClassDef) for inner in one.body]
    for prefix, node in [*(("", one) for one in tree.body), *owned]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside = [*ast.walk(node)]
            raises = (
                ast.unparse(one.exc).partition("(")[0] for one in inside if isinstance(one, ast.Raise) and one.exc
            )
            calls = (ast.unparse(one.func) for one in inside if isinstance(one, ast.Call))
            private = {one.replace("self.", prefix) for one in calls if one.removeprefix("self.").startswith("_")}
            found[f"{prefix}{node.name}"] = (
                {one for one in raises if error_named(one)} - {"NotImplementedError"},
                private,
            )
    return found


def error_named(name: str) -> type[BaseException] | None:
    return getattr(exceptions, name, None) or getattr(builtins, name, None)


def is_kind_of(name: str, known: str) -> bool:
    error, other = error_named(name), error_named(known)
    return error is not None and other is not None and issubclass(error, other)
