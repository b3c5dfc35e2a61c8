"""Deploys that programs have asked for: each is a ``qserve deploy`` of its own, so no user code runs in the server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qserve.appfile.yaml_text import yaml_of
from qserve.base.log import get_logger
from qserve.base.settings import Settings
from qserve_gateway.request.environ import Refused

log = get_logger(__name__)
_NAME = "body.yaml"
_KEPT = 16 * 1024
"""How much of its output is kept."""


@dataclass
class Expected:
    """What the last deploy is doing.

    Parameters:
      names: The applications of its file.
      failures: Why it has failed, by application.
    """

    names: Sequence[str] = ()
    is_running: bool = False
    failures: dict[str, str] = field(default_factory=dict)


class Deploys:
    """Runs one deploy at a time.

    Parameters:
      app_dir: The folder in which import paths are searched for first.
    """

    def __init__(self, settings: Settings, app_dir: str) -> None:
        self._settings = settings
        self._app_dir = app_dir
        self._last = Expected()
        self._lock = threading.Lock()

    def expected(self) -> Expected:
        """Return what the last deploy is doing."""
        return self._last

    def check_idle(self) -> None:
        """Raise Refused (409) while a deploy is under way."""
        if self._last.is_running:
            names = ", ".join(map(repr, self._last.names))
            raise Refused(f"a deploy of {names} is under way", "deploy_under_way", 409, retry_after_s=1)

    def start(self, names: Sequence[str], content: Any) -> None:
        """Begin to deploy what a file would say.

        If this process ends, the deploy goes on, and nobody reports how it ended.

        Raises:
          Refused: Another one is under way.
        """
        with self._lock:
            self.check_idle()
            self._last = Expected(names, is_running=True)
        threading.Thread(target=self._run, args=(self._last, content), daemon=True).start()

    def _run(self, job: Expected, content: Any) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="qserve-api-") as folder:
                (Path(folder) / _NAME).write_text(yaml_of(content), encoding="utf-8")
                output = self._deploy(folder)
        except Exception as error:
            log.exception("a deploy could not be started")
            output = f"Error: it could not be started: {error}"
        job.failures.update(failures_in(output, job.names))
        for name in job.names:
            log.info("deploy of application %r %s", name, "failed" if name in job.failures else "is done")
        job.is_running = False

    def _deploy(self, folder: str) -> str:
        """Run the command; return its output if it has failed."""
        command = [sys.executable, "-P", "-m", "qserve", "deploy", f"{folder}/{_NAME}", "--app-dir", self._app_dir]
        env = {**os.environ, **self._settings.to_env()}
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        output = done.stdout.decode(errors="replace").replace(f"{folder}/", "")
        return f"{output[-_KEPT:]}\nError: exit code {done.returncode}" if done.returncode else ""


def failures_in(output: str, names: Sequence[str]) -> dict[str, str]:
    """Return why a deploy has failed, by application; nothing if it has not."""
    if not output:
        return {}
    parts = re.split(r"^Error: ", output, flags=re.MULTILINE)
    causes = {name: text for name in names for text in parts[1:] if text.startswith(f"{name}: ")}
    if causes:
        return {name: text.removeprefix(f"{name}: ").strip() for name, text in causes.items()}
    # before anything was changed: it is about all of them
    traceback, errors = parts[0].strip(), [text.strip() for text in parts[1:]]
    message = "\n".join([traceback, *(errors[:-1] or errors)]).strip()
    return dict.fromkeys(names, message)
