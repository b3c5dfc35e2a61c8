"""The context in which user code is entered: as it was when its replica started, with nothing that other calls set."""

from __future__ import annotations

import asyncio
import inspect
import weakref
from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import Any

from qserve.base.forks import end_if_child

start: Context | None = None
"""The context in which this process, a replica, has imported the user's code; None elsewhere."""
_start_here: ContextVar[Callable[[], Context | None]] = ContextVar("qserve_start_here", default=lambda: start)


def start_in(context: Context) -> None:
    """Have user code that is entered from ``context`` or a copy of it start with another copy; the caller keeps it."""
    # weakly, because a context that holds itself would keep all that it holds until the collector runs
    context.run(_start_here.set, weakref.ref(context))


def own_context() -> Context:
    """Return a context for one entry into user code."""
    found = _start_here.get()()
    return Context() if found is None else found.copy()


async def enter(call: Callable[..., Any], *args: Any) -> Any:
    """Call user code in its own context, and await what it returns until that is a value."""

    async def outcome() -> tuple[Any, BaseException | None]:
        try:
            value = call(*args)
            while inspect.isawaitable(value):
                value = await value
        except BaseException as error:  # SystemExit would end the loop from within this task
            end_if_child(error)
            return None, error
        end_if_child(None)
        return value, None

    value, error = await asyncio.get_running_loop().create_task(outcome(), context=own_context())
    if error is None:
        return value
    try:
        raise error
    finally:
        del error  # this frame is in its traceback: together they would be a cycle
