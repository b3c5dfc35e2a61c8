"""Tasks of user code that go on after the response. A replica waits for them before it ends."""

from __future__ import annotations

import asyncio
from typing import Any

_tasks: set[asyncio.Task[Any]] = set()


def keep(task: asyncio.Task[Any]) -> None:
    """Keep a task until it has ended; an event loop itself holds tasks weakly."""
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


def unfinished() -> int:
    """Return how many tasks have not ended."""
    return len(_tasks)


async def finished() -> None:
    """Wait until all tasks have ended."""
    while _tasks:
        await asyncio.wait(_tasks)
