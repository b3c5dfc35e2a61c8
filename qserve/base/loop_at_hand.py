"""Let sync user code find the event loop of its replica, as Ray's does, and run loops of its own all the same."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from asyncio import events
from collections.abc import Iterator
from typing import Any

_at_hand = threading.local()
held: set[asyncio.AbstractEventLoop] = set()
"""The loops at hand: none of them runs before the sync code of its thread has returned."""
_find, _set = events._get_running_loop, events._set_running_loop


@contextlib.contextmanager
def loop_at_hand(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Have ``asyncio.get_running_loop`` return a loop in this block, although ``asyncio.run`` may run another.

    asyncio asks these two functions whether a loop is running in this thread before it runs one. All others ask the
    interpreter, in which the loop is noted. A loop that does not run can be run by the code in the block as well.
    """
    events._get_running_loop, events._set_running_loop = _find_other, _set_or_restore
    before = _find()
    _at_hand.loop = loop
    held.add(loop)
    _set(loop)
    try:
        yield
    finally:
        _at_hand.loop = None
        held.discard(loop)
        _set(before)
        asyncio.set_event_loop(loop)  # the end of asyncio.run removes it


def loop_that_runs() -> asyncio.AbstractEventLoop | None:
    """Return the loop that runs this code, which must not block it; None in sync code, also with a loop at hand."""
    return _find_other()  # type: ignore[no-any-return]


def _find_other() -> Any:
    found = _find()
    return None if found is getattr(_at_hand, "loop", None) else found


def _set_or_restore(loop: Any) -> None:
    _set(getattr(_at_hand, "loop", None) if loop is None else loop)
