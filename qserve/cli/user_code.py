"""Load user code in its own process, so that nothing it does to its process reaches the command."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import NoReturn

import click

from qserve.base.clock import Deadline
from qserve.base.parts import advice_for
from qserve.base.process import die_with_parent, exit_words
from qserve.base.tracebacks import one_line, user_traceback
from qserve.cli.options import BadInput
from qserve.define.target import shadows
from qserve.exceptions import QserveException, UsageProblem

_POLL_INTERVAL_S = 0.02
_END_WITHIN_S = 2.0
"""How long the process may take to end once it has delivered; exit handlers of user code run then."""
_DUMP_FOR_S = 0.5
"""How long a process that is late may take to write where it is."""
_LENGTH_BYTES = 8
_UNDELIVERED = 74
"""The exit code of a process whose pipe was closed by user code."""


def load_apart(target: str, limit_s: float, load: Callable[[], bytes]) -> bytes:
    """Return what ``load`` returns, which imports ``target`` and is called in a fork of this process.

    What user code leaves behind (threads, processes, handlers, another working folder) ends with that process.

    Raises:
      BadInput: It raised a UsageProblem.
      ClickException: It failed, ended its process, or took longer than ``limit_s``; the message names the target.
    """
    import_module("qserve").import_all()  # while no file of the user can take the place of what these import
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        _deliver(target, limit_s, load, write_end)
    os.close(write_end)
    child = _Child(pid, read_end)
    try:
        data = child.receive(limit_s + _DUMP_FOR_S)
    finally:
        child.end(_END_WITHIN_S if child.has_delivered else 0.0)
        os.close(read_end)
    if data is None:
        raise click.ClickException(f"{target} cannot be loaded: {child.why(limit_s)}")
    trace, error, is_usage, value = data.split(b"\0", 3)
    if trace:
        click.echo(trace.decode(), err=True)
    if error:
        raise (BadInput if is_usage else click.ClickException)(error.decode())
    return value


class _Child:
    """The process that loads user code, seen from the command."""

    def __init__(self, pid: int, read_end: int) -> None:
        self.has_delivered = False
        self._pid = pid
        self._read_end = read_end
        self._code: int | None = None
        self._is_late = False

    def receive(self, limit_s: float) -> bytes | None:
        """Return what it delivers; None if it ends before, or has not delivered in time."""
        # the length comes first: a process that user code has started may hold the pipe open
        deadline, data, readable = Deadline(limit_s), b"", select.poll()
        readable.register(self._read_end, select.POLLIN)
        has_ended = False
        while not (has_ended or deadline.has_passed()):
            has_ended = self._has_ended()  # before the read: what it wrote is read once more
            if readable.poll(0 if has_ended else _POLL_INTERVAL_S * 1000):
                data += os.read(self._read_end, 1 << 20)
            length = int.from_bytes(data[:_LENGTH_BYTES])
            self.has_delivered = 0 < length <= len(data) - _LENGTH_BYTES
            if self.has_delivered:
                return data[_LENGTH_BYTES:]
        self._is_late = not has_ended
        return None

    def end(self, within_s: float) -> None:
        """Wait until it has ended, or end it; and end what it has started."""
        deadline, has_ended = Deadline(within_s), self._has_ended()
        while not has_ended:
            if not within_s or deadline.has_passed():
                os.kill(self._pid, signal.SIGKILL)
            time.sleep(_POLL_INTERVAL_S)
            has_ended = self._has_ended()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGKILL)

    def _has_ended(self) -> bool:
        if self._code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code is not None

    def why(self, limit_s: float) -> str:
        """Say why it delivered nothing."""
        if self._is_late:
            return f"its import took longer than {limit_s:g} s (QSERVE_START_TIMEOUT_S)"
        if self._code == _UNDELIVERED:
            return "it closed the files of the process that imported it"
        memory = ", perhaps out of memory" if self._code == -signal.SIGKILL else ""
        return f"it ended the process that imported it ({exit_words(self._code or 0)}{memory})"


# -- in the child ----------------------------------------------------------------------------------


def _deliver(target: str, limit_s: float, load: Callable[[], bytes], write_end: int) -> NoReturn:
    """Load user code and send the result; anything may happen to this process meanwhile."""
    atexit._clear()  # the command's own
    os.setsid()  # so that all it starts can be found, and Ctrl-C in a terminal is for the command alone
    die_with_parent(signal.SIGKILL)
    pid, value, trace, error, is_usage = os.getpid(), b"", "", "", False
    with contextlib.suppress(Exception):  # standard error may be closed
        faulthandler.enable()
        faulthandler.dump_traceback_later(limit_s)
    try:
        value = load()
    except BaseException as raised:
        trace, error = _words(target, raised)
        is_usage = isinstance(raised, UsageProblem)
    if os.getpid() != pid:  # a fork that user code has made, and that came back here
        os._exit(0)
    with contextlib.suppress(BaseException):
        faulthandler.cancel_dump_traceback_later()
        sys.stdout.flush()
    words = (text.replace("\0", "\\0").encode(errors="replace") for text in (trace, error, "1" * is_usage))
    data = b"\0".join((*words, value))
    data = len(data).to_bytes(_LENGTH_BYTES) + data
    try:
        while data:
            data = data[os.write(write_end, data) :]
    except OSError:
        os._exit(_UNDELIVERED)
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
        sys.stdout.flush()
    os._exit(0)


def _words(target: str, error: BaseException) -> tuple[str, str]:
    """Return the traceback to show, if there is one, and the message."""
    if isinstance(error, QserveException):
        return "", str(error)
    trace = user_traceback(error)
    hint = shadows(error) or advice_for(error)
    if "\n" not in trace and isinstance(error, TypeError | ValueError | AssertionError):
        return "", f"{target} cannot be served: {error}"  # no line of user code has raised it
    return trace, f"{target} cannot be loaded: {one_line(error)}" + (f"; {hint}" if hint else "")
