"""Celery's pool of a replica: the process itself."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from celery.concurrency.base import BasePool


class ReplicaPool(BasePool):  # type: ignore[misc]
    """A pool without children, because the consumer's loop runs the calls.

    It calls itself green so that Celery serves remote control beside the consumer's loop instead of in it;
    ``spawn_n`` gives that service a thread.
    """

    is_green = True
    limit = 1

    def spawn_n(self, function: Callable[..., Any], *args: Any) -> None:
        """Run Celery's remote control service in a thread."""
        threading.Thread(target=function, args=args, name="remote-control", daemon=True).start()

    def _get_info(self) -> dict[str, Any]:
        return {
            "implementation": "qserve",
            "max-concurrency": 1,
            "processes": [os.getpid()],
            "timeouts": (),
        }
