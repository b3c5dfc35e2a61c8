"""Let sync user code find the event loop of its replica, as Ray's does, and run loops of its own all the same."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import threading
from asyncio import events
from collections.abc import Callable, Iterator
from typing import Any

from qserve.base.context import NO_REQUEST, request_context

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


class _LoopInThread(asyncio.AbstractEventLoop):
    """A loop as ``asyncio.get_event_loop`` and ``ensure_future`` find it in sync code that runs in another thread.

    Everything that is called here runs on the loop, which may be waiting for events, and whose lists of callbacks are
    not made for two threads. Only ``run_until_complete`` waits in this thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def run_until_complete(self, future: Any) -> Any:
        async def outcome() -> Any:
            return await future

        _keep_in_thread()
        return asyncio.run_coroutine_threadsafe(outcome(), self._loop).result()

    def stop(self) -> None:
        """Stop nothing, and nor does ``close``: the loop has other calls to run."""
        _keep_in_thread()

    close = stop

    def _run(self, name: str, *args: Any, **kwargs: Any) -> Any:
        call = getattr(self._loop, name)
        if getattr(self._loop, "_thread_id", None) == threading.get_ident():  # user code has kept this object
            return call(*args, **kwargs)
        _keep_in_thread()
        done: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def run() -> None:
            try:
                done.set_result(call(*args, **kwargs))
            except BaseException as error:
                done.set_exception(error)

        self._loop.call_soon_threadsafe(run, context=contextvars.copy_context())
        return done.result()


def _keep_in_thread() -> None:
    """Note that the running method waits for the loop, and so must not become one that runs on it."""
    request = request_context.get()
    if request is not NO_REQUEST:
        request.makes_calls = True


def _on_loop(name: str) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: self._run(name, *args, **kwargs)


for _name in set(dir(asyncio.AbstractEventLoop)) - set(vars(_LoopInThread)):
    if not _name.startswith("_"):
        setattr(_LoopInThread, _name, _on_loop(_name))


def seen_in_thread(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    """Return what sync code in another thread is to find as its event loop."""
    return _LoopInThread(loop)  # type: ignore[abstract]  # it has all methods, by the loop above
