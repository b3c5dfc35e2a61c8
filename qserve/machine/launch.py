"""One machine: the embedded broker, the workers and the gateway, started together and ended together."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from qserve.base.process import Child
from qserve.base.settings import CHECKED, DEFAULT_HOST, DEFAULT_PORT, Settings
from qserve.exceptions import DeployError
from qserve.machine.embedded import EmbeddedBroker
from qserve.machine.keeper import Keeper

STOP_FOR_S = 4.0


class Launch:
    """The processes of one machine. Once told to ``keep`` them, it starts those again that die.

    Parameters:
      settings: Without a broker, an embedded one is started, with a key of its own.
      host, port: Where the gateway listens.
      gateway_workers: Processes of the gateway.
      import_paths: Folders that replicas search for modules first.

    Raises:
      BrokerUnavailable: The broker does not answer.
      BrokerError: It must not be used as it is; see ``qserve.machine.doctor``.
      DeployError: The gateway's address is taken.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        host: str = DEFAULT_HOST,
        port: int = DEFAULT_PORT,
        gateway_workers: int = 1,
        import_paths: tuple[str, ...] = (),
    ) -> None:
        self.host, self.port = host, port
        self.gateway_workers = gateway_workers
        _check_address(host, port)
        self._broker: EmbeddedBroker | None = None
        self._children: list[Child] = []
        self._keeper = Keeper()
        if settings.broker_url is None:
            self._broker = EmbeddedBroker()
            self._keeper.add(self._broker)
            key = settings.secret_key or secrets.token_hex(32).encode()
            settings = replace(settings, broker_url=self._broker.url, secret_key=key)
        self.settings = settings
        self._env = settings.to_env() | {"PYTHONPATH": _python_path(import_paths), CHECKED: "1"}
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        python = [sys.executable, "-m"]
        if self._broker is None:
            # imported on use: beside an embedded broker this process needs no client of a broker, which takes 10 MB
            import_module("qserve.machine.doctor").check(self.settings)
        gateway = ["qserve_gateway", "--host", self.host, "--port", str(self.port)]
        gateway += ["--workers", str(self.gateway_workers)]
        # what it leaves behind holds the port, and would serve no longer than a second
        self._add(Child("the gateway", [*python, *gateway], self._env, kills_orphans=True))
        # the gateway's token is nothing that user code should see
        workers_env = self._env | {"QSERVE_API_TOKEN": ""}
        # what it leaves behind finishes what it runs, see `qserve_workers.process.orphan`
        self._add(Child("the workers' supervisor", [*python, "qserve_workers"], workers_env))
        if self._broker is not None:
            self._broker.wait_ready()

    def _add(self, child: Child) -> None:
        self._children.append(child)
        self._keeper.add(child)

    @property
    def url(self) -> str:
        """Where the gateway answers."""
        return f"http://{self.host}:{self.port}"

    def check(self) -> None:
        """Raise DeployError when one of the processes has ended and is not started again."""
        self._keeper.check()

    def keep(self) -> None:
        """Start again what dies from now on. What fails before all of it has served would fail again."""
        self._keeper.begin()

    def stop(self) -> None:
        """End everything in the reverse order of the start; within five seconds, whatever still runs."""
        self._keeper.hold()
        for child in self._children:
            child.terminate()
        give_up = time.monotonic() + STOP_FOR_S
        for child in self._children:
            if child.wait(max(0.0, give_up - time.monotonic())) is None:
                child.kill()
        self._children.clear()
        if self._broker is not None:
            self._broker.stop()
            self._broker = None
        self._keeper.end()


def _check_address(host: str, port: int) -> None:
    """Refuse an address that is taken before anything is started."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise DeployError(f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}") from error


def _python_path(import_paths: tuple[str, ...]) -> str:
    given = [str(Path(path).resolve()) for path in import_paths]
    return os.pathsep.join([*given, *filter(None, [os.environ.get("PYTHONPATH")])])
