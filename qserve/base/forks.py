"""Forked children of user code: how they leave connections and loops to their parent, and how they end.

User code may fork wherever it runs: by ``os.fork``, ``multiprocessing``, the workers of a data loader. The child has
one thread and a copy of everything else. It must not speak on its parent's connections, nor run the callbacks of its
event loop. In all other respects it is a process as any program forks it; where its code returns to us, it ends.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread
import contextlib
import io
import os
import selectors
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, Protocol
from weakref import WeakSet

from qserve.base.process import IS_CHILD, IS_REPLICA, die_with_parent, name_process


class Leaver(Protocol):
    """An object that belongs to its process."""

    def leave_to_parent(self) -> None:
        """Let go of what belongs to the parent; called in a forked child."""


_leavers: WeakSet[Leaver] = WeakSet()
_of_parent: list[dict[str, Any]] = []
_masks: dict[int, set[Any]] = {}
lasting_threads: set[int] = set()
"""The threads of user code that end with their process only."""
is_child: bool = False
"""Whether user code has forked this process."""


def on_fork(leaver: Leaver) -> None:
    """Call ``leave_to_parent`` in every forked child as long as the object lives."""
    _leavers.add(leaver)


def _before_fork() -> None:
    if Setup.is_made:  # until the child has handlers of its own, a signal for it would reach its parent's event loop
        _masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _restore_mask() -> None:
    mask = _masks.pop(threading.get_ident(), None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _in_child() -> None:
    # the threads of pools: at its end a child would wait for those of its parent (newer versions of Python do this)
    concurrent.futures.thread._threads_queues.clear()  # type: ignore[attr-defined]
    for leaver in list(_leavers):
        # what it lets go of is never deleted: the destructor of redis-py's client takes a lock, which a thread of the
        # parent may hold at this moment, and the child would wait for it for ever
        _of_parent.append(dict(vars(leaver)))
        try:
            leaver.leave_to_parent()
        except Exception:
            traceback.print_exc()
    if is_child:
        _end_with_work_item()
    _restore_mask()


class _Ending:
    """In a child, in the place of the future of what a pool's thread runs."""

    def set_result(self, result: object) -> None:
        end_child(None)

    def set_exception(self, error: BaseException) -> None:
        end_child(error)


def _end_with_work_item() -> None:
    """End this child with what a pool's thread was running; that thread would wait for more.

    The loop of the parent may not have followed its future yet when it forked, and may have held the future's lock.
    """
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is concurrent.futures.thread._WorkItem.run.__code__:
            frame.f_locals["self"].future = _Ending()


os.register_at_fork(before=_before_fork, after_in_parent=_restore_mask, after_in_child=_in_child)


def give_up(descriptor: int) -> None:
    """Close what a descriptor leads to, in this process only; its number stays in use, since its owner may close it."""
    if descriptor >= 0:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, descriptor, inheritable=False)
        os.close(nothing)


class Setup:
    """The setup of a replica's process: handlers of signals, functions to be called at its end."""

    is_made: bool = False
    has_left: bool = False

    def __init__(self, replica: str) -> None:
        Setup.is_made = True
        name_process(IS_REPLICA, replica)
        self._replica = replica
        self._pid = os.getpid()
        lasting_threads.add(threading.get_ident())
        on_fork(self)

    def leave_to_parent(self) -> None:
        Setup.has_left = True
        signal.set_wakeup_fd(-1)  # it leads to the parent's event loop
        for number in signal.valid_signals():
            owner = getattr(signal.getsignal(number), "__module__", None) or ""
            if owner.partition(".")[0] in ("asyncio", "qserve_workers"):
                # an interrupt that has come already would be raised here, and be lost
                is_raised = number == signal.SIGINT and number not in signal.sigpending()
                signal.signal(number, signal.default_int_handler if is_raised else signal.SIG_DFL)
        atexit._clear()
        name_process(IS_CHILD, self._replica)
        # to the kernel the parent is the thread that has forked, so this is not for threads that may end before
        if os.getppid() == self._pid and threading.get_ident() in lasting_threads:
            die_with_parent(signal.SIGKILL)


class Loop(asyncio.SelectorEventLoop):
    """The event loop that user code runs on; a forked child that returns to it ends."""

    def __init__(self) -> None:
        super().__init__(selectors.DefaultSelector())
        on_fork(self)

    def run_forever(self) -> None:
        try:
            super().run_forever()
        except BaseException as error:  # SystemExit in a task of the user's own
            end_if_child(error)
            raise

    def leave_to_parent(self) -> None:
        global is_child
        is_child = True
        _renew_streams()
        if self.is_closed():
            return
        # removing a descriptor from it would remove that from the parent's, which is the same in the kernel
        for own in (self._selector, self._ssock, self._csock):  # type: ignore[attr-defined]
            give_up(own.fileno())
        self._ready = _Return(asyncio.current_task(self))
        self._scheduled: list[Any] = []
        vars(self)["call_soon_threadsafe"] = _from_thread


def _renew_streams() -> None:
    """Let a child write, although a thread of its parent may have been writing, and have held the lock of a stream."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        buffer = getattr(stream, "buffer", None)
        if type(buffer) is io.BufferedWriter:
            with contextlib.suppress(OSError, ValueError):  # it is closed
                buffer.__init__(buffer.raw)  # type: ignore[misc]  # with a new lock; the parent writes what it held


class _Return:
    """In a child, in the place of the callbacks that are ready: the loop asks for one when user code has returned.

    Parameters:
      task: The task in which the child was forked.
    """

    def __init__(self, task: asyncio.Task[Any] | None) -> None:
        self._task = task

    def append(self, handle: object) -> None:
        """Take a callback, which is never called."""

    def __len__(self) -> int:
        return self.popleft()

    def popleft(self) -> NoReturn:
        if self._task is not None and not self._task.done():
            end_child(RuntimeError("a forked child cannot await: the event loop of its coroutine runs in the parent"))
        end_child(None if self._task is None or self._task.cancelled() else self._task.exception())


def _from_thread(callback: Callable[..., object], *args: Any, context: Any = None) -> None:
    """Stand in for ``call_soon_threadsafe`` in a child, by which a thread passes on what user code returned or raised.

    Raises:
      RuntimeError: User code has called it.
    """
    if not args:
        raise RuntimeError("the event loop runs in the parent of this forked child only")
    if threading.current_thread() is threading.main_thread():
        end_child(next(filter(None, map(_error_in, args)), None))


def _error_in(value: Any) -> BaseException | None:
    if isinstance(value, concurrent.futures.Future) and value.done() and not value.cancelled():
        return value.exception()
    return value if isinstance(value, BaseException) else None


def end_if_child(error: BaseException | None) -> None:
    """End this process if user code has forked it, and has now come to its end."""
    if is_child:
        end_child(error)


def end_child(error: BaseException | None) -> NoReturn:
    """End a forked child as a program ends whose code has returned, or has raised an error."""
    code = 1
    try:
        if error is None or (isinstance(error, SystemExit) and error.code is None):
            code = 0
        elif isinstance(error, SystemExit) and isinstance(error.code, int):
            code = error.code & 0xFF
        elif isinstance(error, SystemExit):
            print(error.code, file=sys.stderr)
        else:
            sys.excepthook(type(error), error, error.__traceback__)
        if Setup.has_left:
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(code)
