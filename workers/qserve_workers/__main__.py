"""``python -m qserve_workers``: the same as ``qserve worker``."""

from __future__ import annotations

from qserve_workers.command import worker

worker()
