"""The end of a program: it waits until its calls are stored, or reports those that are not, and fails."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from qserve.calls.ref import Ref

FAILED = 120
"""The exit code of a program that would end with 0 although calls of it are lost.

Python itself uses it when its own clean-up fails.
"""
_SHOWN = 20
_REFUSALS_KEPT = 1000
_own_code = 0


def is_ending() -> bool:
    """Return whether the main thread runs what is called at the end, where threads cannot be relied on any more."""
    main = threading.main_thread()
    return threading.current_thread() is main and not main.is_alive()


def call_at_end(end: Callable[[], bool]) -> Callable[[], object]:
    """Call ``end`` once when the program ends, however it does; it returns whether all is well.

    ``os._exit`` and signals that kill leave no time for that.

    Returns:
      What takes this back.
    """
    _note_exit_code()

    def end_program() -> None:
        if not end():
            fail()

    def end_child() -> None:
        # called in the main program as well, by atexit, and changes its exit code in the other way
        if is_ending():
            end_program()
        elif not end():
            error = sys.exc_info()[1]
            if error is None or (isinstance(error, SystemExit) and not error.code):
                raise SystemExit(FAILED)

    atexit.register(end_program)
    # Children of multiprocessing, and of Celery's copy of it, end without atexit; the finalizers of a parent are not
    # theirs. The lowest priority: what else is called at the end may submit calls.
    modules = filter(None, map(sys.modules.get, ("multiprocessing.util", "billiard.util")))
    finalizers = [module.Finalize(None, end_child, exitpriority=-1000) for module in modules]

    def take_back() -> None:
        atexit.unregister(end_program)
        for finalizer in finalizers:
            finalizer.cancel()

    return take_back


class Refusals:
    """The refused calls of a program, for the report at its end."""

    def __init__(self) -> None:
        self.noted: list[tuple[Ref[Any], str]] = []
        self._dropped = 0

    def note(self, ref: Ref[Any], target: str) -> None:
        """Note that a call was refused; ``target`` says what it called."""
        self.noted.append((ref, target))
        if len(self.noted) >= 2 * _REFUSALS_KEPT:
            lost = [noted for noted in self.noted if _is_lost(noted[0])]
            self.noted = lost[-_REFUSALS_KEPT:]
            self._dropped += len(lost) - len(self.noted)

    def report(self) -> bool:
        """Report the calls that are not stored and whose callers do not know it; return whether there are none."""
        refused, self.noted = self.noted, []
        lost = [(ref, target) for ref, target in refused if _is_lost(ref)]
        if lost:
            report(
                "not stored",
                [f"{ref.request_id} {target}: {ref.error()}".strip() for ref, target in lost],
                self._dropped,
            )
        return not lost


def _is_lost(ref: Ref[Any]) -> bool:
    was_accepted = ref.acceptance.is_set() and ref.acceptance.get_nowait()
    return not was_accepted and not ref.is_known_to_caller()


def report(what: str, calls: Sequence[str], more: int = 0) -> None:
    """Say on standard error what has become of calls; ``more`` is the number of those that are not listed."""
    count = len(calls) + more
    lines = [f"qserve: {count} {'request was' if count == 1 else 'requests were'} {what}:"]
    lines += [f"  {call}" for call in calls[:_SHOWN]]
    if count > len(calls[:_SHOWN]):
        lines.append(f"  and {count - len(calls[:_SHOWN])} more")
    if sys.stderr is not None:
        print("\n".join(lines), file=sys.stderr, flush=True)


def fail() -> None:
    """Have the program end with an exit code that is not 0, after all its clean-up."""
    # an unhandled exception, or Ctrl-C, has an exit code already, which Python keeps in C
    if getattr(sys, "last_value", None) is None:
        # sys is cleared when all other modules are gone: their objects, such as open files, have ended properly
        sys.__dict__["_qserve_failure"] = _Failure()


class _Failure:
    """Ends the process when it is deleted."""

    def __init__(self) -> None:
        self._flush = [stream.flush for stream in (sys.stdout, sys.stderr) if stream is not None]
        self._code = _own_code or FAILED

    def __del__(self, _exit: Callable[[int], Any] = os._exit, _errors: Any = (OSError, ValueError)) -> None:
        for flush in self._flush:
            try:  # noqa: SIM105 - contextlib's globals may be gone
                flush()
            except _errors:
                pass
        _exit(self._code)


def _note_exit_code() -> None:
    """Keep what the program passes to ``sys.exit``: Python does not say at its end what it will end with."""
    real = sys.exit
    if getattr(real, "__module__", None) == __name__:
        return

    def exit(status: Any = None, /) -> None:
        global _own_code
        _own_code = status if isinstance(status, int) else int(status is not None)
        real(status)

    exit.__doc__ = real.__doc__
    sys.exit = exit  # type: ignore[assignment]
