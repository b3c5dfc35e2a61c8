"""What the tests of faults share: an installation that a test may harm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from installation import SHOP, Installation, installed
from processes import Site


@pytest.fixture
def shop(site: Site) -> Iterator[Installation]:
    """A broker and the application of ``SHOP``, not yet started."""
    with installed(site, SHOP) as installation:
        yield installation
