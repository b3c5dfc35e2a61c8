"""Fixtures of the fault matrix; helper modules live beside this file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from installation import SHOP, Installation, installed
from processes import Site, new_site
from stacks import Stack


@pytest.fixture
def new_stack(site: Site) -> Iterator[Callable[..., Stack]]:
    """Makes installations for one test, not yet started."""
    made: list[Stack] = []

    def make(**options: Any) -> Stack:
        made.append(Stack(site, **options))
        return made[-1]

    yield make
    for stack in made:
        stack.close()


@pytest.fixture
def stack(new_stack: Callable[..., Stack]) -> Stack:
    """One installation for one test, running."""
    return new_stack().start()


@pytest.fixture(scope="module")
def shared() -> Iterator[Stack]:
    """One installation for all tests of a module; for faults that leave it healthy."""
    with new_site() as site:
        stack = Stack(site).start()
        yield stack
        stack.close()


@pytest.fixture
def shop(site: Site) -> Iterator[Installation]:
    """A broker and the application of ``SHOP``, not yet started."""
    with installed(site, SHOP) as installation:
        yield installation
