"""Scaling policies of the user's, each in a process of its own, which the supervisor tells and never waits for."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NoReturn

from pydantic_core import from_json

from qserve.base.import_path import importing_user_code
from qserve.base.keyring import Keyring
from qserve.base.log import get_logger
from qserve.base.process import set_title
from qserve.base.tracebacks import one_line
from qserve.deploy.registration import POLICY, find_function
from qserve.deploy.sources import Sources
from qserve.engine.policy import STATE_LIMIT, Policy
from qserve.exceptions import BrokerError
from qserve.fleet.values import Asked
from qserve.wire.application import ApplicationRecord, Scaling
from qserve_workers.supervisor.replica_process import flush_streams
from qserve_workers.supervisor.signals import begin_helper

log = get_logger(__name__)
ANSWER_WITHIN_S = 5.0
_FIRST_ANSWER_WITHIN_S = 30.0
"""The first one comes after all that its module imports."""
_TRY_AGAIN_S, _AT_MOST_S = 2.0, 60.0
_LONGEST, _LONGEST_ERROR = 2 * STATE_LIMIT, 500

Version = tuple[str, str]
Key = tuple[str, str, str]


class PolicyHost:
    """Runs the scaling policies of deployments while this worker leads.

    Parameters:
      find: Returns the modules of a version, and its code if that travels by value; None while this worker does not
        have them.
      keys: Those that such code is signed with.
      monotonic: Seconds; replaced in tests.
    """

    def __init__(
        self,
        find: Callable[[ApplicationRecord], tuple[Sources, bytes] | None],
        keys: Keyring,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find = find
        self._keys = keys
        self._clock = monotonic
        self.lacking: set[Version] = set()
        """The versions whose code this worker does not have."""
        self._processes: dict[Key, _Process] = {}

    def __call__(self, record: ApplicationRecord, deployment: str, told: Mapping[str, Any]) -> Asked | None:
        """Tell a policy this context if it waits for one; return its last answer, or None while there is no new one."""
        scaling, key = record.deployments[deployment].scaling or Scaling(), (record.name, record.version, deployment)
        process = self._processes.get(key)
        if process is None or process.scaling != scaling:
            if process is not None:
                process.kill()
            process = self._processes[key] = _Process(scaling)
        if process.connection is None and self._clock() >= process.try_at:
            try:
                code = self._find(record)
                if code is None:
                    self.lacking.add(key[:2])
                    process.fail(self._clock())
                    return Asked(error="no worker that has its code leads")
                self.lacking.discard(key[:2])
                process.start(*code, deployment, self._keys)
            except (OSError, BrokerError) as error:
                process.fail(self._clock())
                return Asked(error=f"its process cannot be started: {error}")
        return process.ask(told, self._clock())

    @property
    def pids(self) -> set[int]:
        """The processes of policies that run."""
        return {one.pid for one in self._processes.values() if one.connection is not None and one.pid}

    @property
    def versions(self) -> set[Version]:
        """The versions whose policies have been asked."""
        return {key[:2] for key in self._processes}

    def note_end(self, pid: int) -> None:
        """Note that a process has ended: its number may be that of another one from now on."""
        for one in self._processes.values():
            if one.pid == pid:
                one.pid = 0

    def keep(self, versions: Collection[Version]) -> None:
        """End the policies of all other versions; of all, when this worker does not lead."""
        self.lacking &= {*versions}
        for key in [key for key in self._processes if key[:2] not in versions]:
            self._processes.pop(key).kill()


class _Process:
    """The process of one policy."""

    def __init__(self, scaling: Scaling) -> None:
        self.scaling = scaling
        self.pid = 0
        self.connection: socket.socket | None = None
        self.try_at = 0.0
        self._pause_s = _TRY_AGAIN_S
        self._late_at: float | None = None
        """Until when an answer must have come; None while none is expected."""
        self._allowed_s = _FIRST_ANSWER_WITHIN_S
        self._read = b""

    def start(self, sources: Sources, code: bytes, deployment: str, keys: Keyring) -> None:
        """Fork it.

        Raises:
          OSError: The system allows no more processes.
        """
        ours, theirs = socket.socketpair()
        flush_streams()
        parent = os.getpid()
        try:
            self.pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if self.pid == 0:
            ours.close()
            set_title("qserve scaling policy")
            _serve(theirs, sources, partial(_policy_of, self.scaling, code, deployment, keys), parent)
        theirs.close()
        ours.setblocking(False)
        self.connection, self._read, self._late_at, self._allowed_s = ours, b"", None, _FIRST_ANSWER_WITHIN_S

    def ask(self, told: Mapping[str, Any], now: float) -> Asked | None:
        if self.connection is None:
            return None
        found = None
        try:
            if self._late_at is not None:
                found = self._answer(self.connection)
                if found is None and now >= self._late_at:
                    raise TimeoutError(f"it has not answered for {self._allowed_s:g} s")
            if self._late_at is None:
                data = json.dumps(told).encode() + b"\n"
                if self.connection.send(data) < len(data):  # it waits for this one, so the buffer is empty
                    raise ValueError("its context is too long")
                self._late_at = now + self._allowed_s
        except (OSError, ValueError) as error:
            self.fail(now)
            return Asked(error=str(error) if isinstance(error, TimeoutError | ValueError) else "its process has ended")
        return found

    def _answer(self, connection: socket.socket) -> Asked | None:
        """Return the answer if all of it has come.

        Raises:
          OSError: The process has ended.
          ValueError: It sends something else.
        """
        try:
            data = connection.recv(_LONGEST)
        except BlockingIOError:
            return None
        if not data:
            raise ConnectionResetError
        self._read += data
        if len(self._read) > _LONGEST:
            raise ValueError("its process sends more than an answer")
        if not self._read.endswith(b"\n"):
            return None
        answer, self._read, self._late_at = _read_answer(self._read), b"", None
        if not answer.error:
            self._pause_s, self._allowed_s = _TRY_AGAIN_S, ANSWER_WITHIN_S
        return answer

    def fail(self, now: float) -> None:
        """End it, and start it again later, after a pause that grows."""
        self.kill()
        self.try_at, self._pause_s = now + self._pause_s, min(_AT_MOST_S, 2 * self._pause_s)

    def kill(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None
            if self.pid:
                with contextlib.suppress(ProcessLookupError):  # the supervisor reaps all of its children
                    os.kill(self.pid, signal.SIGKILL)


def _read_answer(data: bytes) -> Asked:
    """Return what a policy's process has sent, which is user code and may send anything.

    Raises:
      ValueError: It is no answer.
    """
    try:
        found = from_json(data, allow_inf_nan=False)
        return (
            Asked(error=found["error"][:_LONGEST_ERROR])
            if "error" in found
            else Asked(found["count"] + 0.0, {**found["state"]})
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("its process sends something else than answers") from error


def _serve(connection: socket.socket, sources: Sources, load: Callable[[], Policy], parent: int) -> NoReturn:
    """Answer until the supervisor has closed its end."""
    try:
        begin_helper(parent)
        sources.install()
        with connection, connection.makefile("rwb") as stream:
            answer: Callable[[bytes], bytes] | None = None
            for told in stream:
                try:
                    answer = answer or load().answer
                    said = answer(told)
                except BaseException as error:
                    said = json.dumps({"error": one_line(error)}).encode()
                stream.write(said + b"\n")
                stream.flush()
    finally:
        os._exit(0)


def _policy_of(scaling: Scaling, code: bytes, deployment: str, keys: Keyring) -> Policy:
    found = find_function(scaling.policy, POLICY, code, keys, deployment)
    with importing_user_code():
        return Policy(found, from_json(scaling.policy_kwargs))
