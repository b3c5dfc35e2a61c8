"""What all tests share: places for real processes, checked for leftovers when a test is over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from processes import Site, new_site


@pytest.fixture
def site() -> Iterator[Site]:
    """A place for this test's processes; none of them, nor a broker's folder, may outlive it."""
    with new_site() as place:
        yield place


@pytest.fixture(scope="module")
def shared_site() -> Iterator[Site]:
    """The same for a module."""
    with new_site() as place:
        yield place
