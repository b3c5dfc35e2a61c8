"""The processes that have run ``preload`` of a deployment, and that its replicas are forked from (Linux only).

Such a process has the user's modules and what the function returned, and no threads. Replicas share these pages of
memory with it until they write to them. Because it runs user code, the supervisor never waits for it longer than a
moment. It forks twice, so that the kernel makes the replica a child of the supervisor, like any other.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import mmap
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Collection
from dataclasses import replace
from typing import Any, NoReturn

from qserve.base.log import enable_logging
from qserve.base.process import die_with_parent, exit_words, set_title
from qserve.engine.preload import check_forkable
from qserve_workers.process import resources
from qserve_workers.process.loading import Loaded, Loading
from qserve_workers.replica.spec import Exit, Note, ReplicaSpec
from qserve_workers.supervisor.replica_process import flush_streams, run_to_end

CAN_PRELOAD = sys.platform == "linux"
"""Whether replicas can be forked from another process than the supervisor; otherwise each runs ``preload`` itself."""
_FORK_WITHIN_S = 5.0
_LONGEST_WORDS = 60_000
"""As many bytes fit into one message."""
_READY, _FAILED = b"ready", b"failed"
_NOTES = 1024
"""How many notes there is room for: that of a replica is used again after so many others were started."""


class PreloadFailed(Exception):
    """Raised when no replica can be forked, because ``preload`` has failed.

    Parameters:
      began_at: When it was run, by the monotonic clock.
    """

    def __init__(self, why: str, began_at: float) -> None:
        super().__init__(why)
        self.began_at = began_at


class Preloads:
    """Keeps one process for each queue whose deployment has a ``preload``."""

    def __init__(self) -> None:
        self._processes: dict[str, PreloadProcess] = {}

    def __contains__(self, stream: str) -> bool:
        return stream in self._processes

    def get(self, spec: ReplicaSpec, data: bytes) -> PreloadProcess | None:
        """Return the process that forks replicas; None while it is not ready.

        Parameters:
          spec: A replica of the deployment, which is not started.
          data: What was sent of its code; b"" if it is imported.

        Raises:
          OSError: The system allows no more processes.
          PreloadFailed: ``preload`` has failed; the next call runs it again.
        """
        process = self._processes.get(spec.stream)
        if process is None or process.is_gone:
            self.drop(spec.stream)
            process = self._processes[spec.stream] = PreloadProcess(spec, data)
        try:
            return process if process.is_ready() else None
        except PreloadFailed:
            self.drop(spec.stream)
            raise

    def drop(self, stream: str) -> None:
        """End the process of a queue; the replicas keep the pages that they share."""
        process = self._processes.pop(stream, None)
        if process is not None:
            process.kill()

    def keep(self, streams: Collection[str]) -> None:
        """End the processes of all other queues."""
        for stream in self._processes.keys() - {*streams}:
            self.drop(stream)

    def note_end(self, pid: int, status: int) -> None:
        """Note that a process has ended: its number may be that of another one from now on."""
        for process in self._processes.values():
            if process.pid == pid:
                process.note_end(os.waitstatus_to_exitcode(status))

    @property
    def pids(self) -> set[int]:
        """The processes that run."""
        return {process.pid for process in self._processes.values() if process.pid}

    @property
    def awaited(self) -> list[int]:
        """The file descriptors that can be read when a process has something to say that was not ready yet."""
        return [process.fileno() for process in self._processes.values() if not process.has_said]


class PreloadProcess:
    """The process of one deployment.

    Raises:
      OSError: The system allows no more processes.
    """

    def __init__(self, spec: ReplicaSpec, data: bytes) -> None:
        self._spec = spec
        self.has_said = False
        self._ended_with: int | None = None
        self._began_at = time.monotonic()
        self._notes, self._count = mmap.mmap(-1, _NOTES * Note.SIZE), 0
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        flush_streams()
        try:
            self.pid = os.fork()
        except OSError:
            self._connection.close()
            theirs.close()
            raise
        if self.pid == 0:
            self._connection.close()
            _serve(theirs, spec, data, self._notes)
        theirs.close()
        self._connection.setblocking(False)

    def fileno(self) -> int:
        return self._connection.fileno()

    @property
    def is_gone(self) -> bool:
        """Whether it has ended after it was ready."""
        return self.has_said and self._ended_with is not None

    def note_end(self, code: int) -> None:
        """Note that it has ended."""
        self.pid, self._ended_with = 0, code

    def kill(self) -> None:
        self._connection.close()
        if self.pid:
            with contextlib.suppress(ProcessLookupError):  # the supervisor reaps all of its children
                os.kill(self.pid, signal.SIGKILL)

    def is_ready(self) -> bool:
        """Return whether replicas can be forked.

        Raises:
          PreloadFailed: They cannot.
        """
        if self.has_said:
            return True
        path, limit_s = self._spec.options.preload, self._spec.settings.start_timeout_s
        try:
            said = self._connection.recv(2 * _LONGEST_WORDS)
        except BlockingIOError:
            if self._ended_with is None and time.monotonic() - self._began_at > limit_s:
                why = f"start_timeout: its preload {path} did not return within {limit_s:g} s (QSERVE_START_TIMEOUT_S)"
                raise PreloadFailed(why, self._began_at) from None
            said = b""
        except OSError:
            said = b""
        if said.startswith(_FAILED):
            raise PreloadFailed(said.removeprefix(_FAILED).decode(errors="replace"), self._began_at)
        self.has_said = said == _READY
        if self.has_said:
            self._connection.settimeout(_FORK_WITHIN_S)
        elif self._ended_with is not None:
            raise PreloadFailed(f"its preload {path} ended its process: {exit_words(self._ended_with)}", self._began_at)
        return self.has_said

    def fork(self, spec: ReplicaSpec) -> int:
        """Fork a replica, and return its process id.

        Raises:
          OSError: The system allows no more processes, or this one is of no use any more.
        """
        spec.adopt(self._spec.options)  # if they have changed meanwhile, it is told to read them again
        at = self._count % _NOTES * Note.SIZE
        spec.note, self._count = Note(self._notes, at), self._count + 1
        told = {"name": spec.name, "is_paused": spec.is_paused, "devices": spec.devices, "at": at}
        self._connection.send(json.dumps(told).encode())
        answer = self._connection.recv(_LONGEST_WORDS)
        pid = int(answer) if re.fullmatch(rb"-?\d{1,9}", answer) else -errno.ECONNRESET
        if pid <= 0:
            raise OSError(-pid, os.strerror(-pid))
        spec.note.admit()
        return pid


# -- the process itself ----------------------------------------------------------------------------


def _serve(connection: socket.socket, spec: ReplicaSpec, data: bytes, notes: mmap.mmap) -> NoReturn:
    """Load the code, run ``preload``, and fork replicas until the supervisor has closed its end."""
    try:
        die_with_parent(signal.SIGKILL)
        if os.getppid() != spec.parent:
            os._exit(Exit.ORPHANED)
        signal.signal(signal.SIGINT, lambda number, frame: None)
        for number in (signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # for the replicas, see `fork_replica`
        set_title(f"qserve preload {spec.record.name}:{spec.deployment}")
        resources.apply(spec)
        resources.log_as_told(spec)
        loading = Loading(spec)
        try:
            # code that was sent by value is unpacked by each replica
            loaded = Loaded(loading.code(data) if spec.is_imported else None, loading.preload(data))
            check_forkable(loading.label)
        except BaseException as error:
            connection.send(_FAILED + loading.why(error).encode(errors="replace")[:_LONGEST_WORDS])
            os._exit(Exit.FAILED)
        enable_logging()
        gc.collect()
        gc.freeze()
        connection.send(_READY)
        while told := connection.recv(_LONGEST_WORDS):
            _fork(connection, spec, loaded, notes, json.loads(told))
    finally:
        os._exit(Exit.FAILED)


def _fork(connection: socket.socket, spec: ReplicaSpec, loaded: Loaded, notes: mmap.mmap, told: dict[str, Any]) -> None:
    """Fork a replica by a process in between, which ends at once, so that the kernel gives it to the supervisor."""
    note = Note(notes, told.pop("at"))
    note.clear()
    flush_streams()
    try:
        between = os.fork()
        if between:
            os.waitpid(between, 0)
            return
        between, replica = os.getpid(), os.fork()
    except OSError as error:
        connection.send(b"%d" % -(error.errno or errno.EAGAIN))
        if os.getppid() != spec.parent:
            os._exit(0)
        return
    if replica:
        connection.send(b"%d" % replica)
        os._exit(0)
    connection.close()
    if not note.wait_until_admitted(lambda: os.getppid() != between):
        os._exit(Exit.ORPHANED)
    run_to_end(replace(spec, **{**told, "devices": tuple(told["devices"]), "note": note}), loaded)
