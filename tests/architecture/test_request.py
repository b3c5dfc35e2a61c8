"""The files that one request passes, traced, against the list in docs/architecture.md."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import request_walk  # noqa: E402

pytestmark = pytest.mark.slow
MOST_FILES = 30
"""One request may pass no more files than this."""
MOST_DECISIONS = 15
"""In no more of them may something be decided."""


@pytest.fixture(scope="module")
def walk() -> request_walk.Walk:
    return request_walk.walk()


def test_the_documentation_lists_the_files_that_a_request_passes(walk: request_walk.Walk) -> None:
    traced = {*map(request_walk.file_of, walk.modules)}

    listed = {*request_walk.documented()}

    assert not traced - listed, f"a request passes these files for the first time (at most {MOST_FILES} in all)"
    assert not listed - traced, "run `make tables`: a request no longer passes these files"


def test_the_documentation_lists_them_in_the_order_in_which_a_request_comes_to_them(walk: request_walk.Walk) -> None:
    modules = {request_walk.file_of(module): module for module in walk.modules}
    listed = [modules[file] for file in request_walk.documented() if file in modules]

    assert not walk.contradictions(listed), "run `make tables`"


def test_a_request_passes_no_more_files_than_it_needs(walk: request_walk.Walk) -> None:
    new = {*map(request_walk.file_of, walk.modules)} - {*request_walk.documented()}

    assert 0 < len(walk.modules) <= MOST_FILES, f"at most {MOST_FILES}; new are: {sorted(new) or 'none'}"


def test_decisions_are_made_in_few_of_these_files() -> None:
    assert 0 < len([row for row in request_walk.rows() if row[3]]) <= MOST_DECISIONS


def test_an_order_is_contradicted_only_by_what_every_request_does() -> None:
    walk = request_walk.Walk(["a", "b", "c"], frozenset({("a", "b"), ("a", "c")}))

    assert walk.contradictions(["a", "c", "b"]) == []
    assert walk.contradictions(["b", "a", "c"]) == [("b", "a")]
