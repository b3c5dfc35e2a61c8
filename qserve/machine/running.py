"""Which installations of this user run on this host, so that other commands and programs find them by themselves.

Each of them writes a file into its private folder, with the address of its broker and the key.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from qserve.base.log import printable
from qserve.base.settings import Settings
from qserve.exceptions import UsageProblem
from qserve.machine.private_folder import PrivateFolder, read_in_use

_FILE = "run.json"
_VARIABLES = (
    "QSERVE_BROKER_URL", "QSERVE_BROKER_EMBEDDED", "QSERVE_PAYLOADS", "QSERVE_SECRET_KEY", "QSERVE_ACCEPTED_KEYS",
    "QSERVE_NAMESPACE",
)  # fmt: skip


@dataclass(frozen=True)
class Running:
    """What one installation says of itself.

    Parameters:
      pid: The process of `qserve run`, or of the program.
      what: The target of `qserve run`, or the name of the program.
      url: The address of its gateway.
      folder: Its working folder.
      started_at: When it was ready, in seconds since 1970.
      variables: The environment in which a process uses its broker.
    """

    pid: int
    what: str
    url: str
    folder: str
    started_at: float
    variables: dict[str, str] = field(repr=False)

    def __str__(self) -> str:
        return printable(f"{self.what} (pid {self.pid}, {self.url})").replace("\n", " ")


def announce(folder: PrivateFolder, what: str, url: str, settings: Settings) -> None:
    """Let this user's processes find what this one runs.

    Raises:
      OSError: The file cannot be written.
    """
    variables = {name: value for name, value in settings.to_env().items() if name in _VARIABLES}
    running = Running(os.getpid(), what, url, str(Path.cwd()), time.time(), variables)
    folder.write(_FILE, json.dumps(asdict(running)).encode())


def find_running() -> list[Running]:
    """Return what runs here and belongs to this user, the oldest first."""
    found = []
    for data in read_in_use(_FILE):
        with contextlib.suppress(ValueError, TypeError, RecursionError, OverflowError, OSError):
            running = _read(data)
            os.kill(running.pid, 0)  # a process that it has forked may hold the lock of one that has ended
            found.append(running)
    return sorted(found, key=lambda running: (running.started_at, running.pid))


def _read(data: bytes) -> Running:
    found = json.loads(data)
    running = Running(**{one.name: found[one.name] for one in fields(Running) if one.name in found})
    kinds = {"pid": int, "started_at": float, "variables": dict}
    of_its_kind = all(type(getattr(running, one.name)) is kinds.get(one.name, str) for one in fields(Running))
    texts = [*running.variables.keys(), *running.variables.values()] if of_its_kind else [None]
    if not all(type(text) is str for text in texts) or running.pid <= 0:
        raise ValueError("the run file is malformed")
    return running


def settings_of_run(pid: str = "") -> Settings | None:
    """Return the settings of what this user runs here, and say on standard error what it is; None if nothing runs.

    Parameters:
      pid: Its process, where several run; "" for ``QSERVE_RUN``.

    Raises:
      UsageProblem: Several run, or none with this ``pid``; the message lists them.
    """
    pid = pid or os.environ.get("QSERVE_RUN", "")
    running = find_running()
    chosen = [one for one in running if pid in ("", str(one.pid))]
    if len(chosen) > 1:
        raise UsageProblem(
            "more than one `qserve run` of yours is running."
            f" Choose one with --run PID (in Python: QSERVE_RUN=PID):{_listed(chosen)}"
        )
    if pid and not chosen:
        raise UsageProblem(f"no run of yours has the process ID {pid}" + (_listed(running) or f"; {none_found()}"))
    if not chosen:
        return None
    print(f"qserve: using the run of {chosen[0]}", file=sys.stderr)
    others = {name: value for name, value in os.environ.items() if name not in _VARIABLES}
    return Settings.from_env({**others, **chosen[0].variables})


def none_found() -> str:
    """Say that nothing was found, and where it was looked for."""
    return f"no `qserve run` of yours was found in {tempfile.gettempdir()}"


def _listed(running: Sequence[Running]) -> str:
    return "".join(
        f"\n  --run {one.pid:<8} {printable(one.what)} in {printable(one.folder)}, {one.url}" for one in running
    )
