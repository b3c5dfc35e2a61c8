"""``python -m qserve_workers``: the same as ``qserve worker``."""

from __future__ import annotations

import qserve  # noqa: F401  first of all: it takes the working folder off the path

# isort: split
from qserve.base.import_path import all_at_once

with all_at_once():
    from qserve_workers.command import worker

worker()
