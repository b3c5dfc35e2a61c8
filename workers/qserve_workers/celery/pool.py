"""Celery's pool of a replica: the process itself."""

from __future__ import annotations

import os
from typing import Any

from celery.concurrency.base import BasePool


class ReplicaPool(BasePool):  # type: ignore[misc]
    """A pool without children, because the consumer's loop runs the calls."""

    limit = 1

    def _get_info(self) -> dict[str, Any]:
        return {
            "implementation": "qserve",
            "max-concurrency": 1,
            "processes": [os.getpid()],
            "timeouts": (),
        }
