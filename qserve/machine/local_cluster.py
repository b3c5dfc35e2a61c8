"""A cluster on one machine: the embedded broker, the workers and the gateway, started and stopped together."""

from __future__ import annotations

import secrets
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from qserve.base.clock import Deadline
from qserve.base.import_path import variables_of_child
from qserve.base.listening import at, listen
from qserve.base.log import get_logger
from qserve.base.parts import require_gateway
from qserve.base.settings import CHECKED, DEFAULT_HOST, DEFAULT_PORT, Settings
from qserve.base.unused import warn_of_environment
from qserve.machine.children import Child, Restarter
from qserve.machine.embedded_broker import EmbeddedBroker
from qserve.machine.private_folder import PrivateFolder, remove_abandoned
from qserve.machine.running import announce
from qserve.payloads import shm_folder

log: Final = get_logger(__name__)
STOP_TIMEOUT_S = 4.0
_HIGHEST_PORT = 65_535

_OF_GATEWAY = ("QSERVE_API_TOKEN", "QSERVE_UI_TOKEN", "QSERVE_UI_ACTIONS_TOKEN", "QSERVE_UI_BROKER_URL")


class LocalCluster:
    """The broker, workers and gateway of one machine. After ``keep_running`` those that die are restarted.

    Parameters:
      settings: Without a broker, an embedded one is started, with its own secret key.
      host, port: The address that the gateway listens on.
      gateway_workers: The number of gateway processes.
      gateway_env: Further variables of the gateway's environment.
      import_paths: Folders in which replicas search for modules first.
      uninterrupted: Returns a block that no interrupt can leave: a process is started and recorded in one. All the rest
        of a start may be interrupted, since it may have to wait.

    Raises:
      DeployError: The address is in use, or is not one of this machine.
      ValueError: The port is not one.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        host: str = DEFAULT_HOST,
        port: int = DEFAULT_PORT,
        gateway_workers: int = 1,
        gateway_env: Mapping[str, str] = MappingProxyType({}),
        import_paths: tuple[str, ...] = (),
        uninterrupted: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        warn_of_environment()
        self.host: Final = host
        self.port: Final = port
        self.gateway_workers = gateway_workers
        self._gateway_env = gateway_env
        _check_address(host, port)
        self.url: str = f"http://{at(host, port)}"
        self.settings: Settings = settings
        self._folders = [str(Path(path).absolute()) for path in import_paths]
        self._uninterrupted = uninterrupted
        self._stopped = False
        self._broker: EmbeddedBroker | None = None
        self._announced_in: PrivateFolder | None = None
        self._restarter = Restarter()
        self._task_brokers: set[tuple[str, str]] = set()
        self.check: Final = self._restarter.check

    @property
    def user_code_env(self) -> dict[str, str]:
        """The variables of a process that imports user code, which must not see the gateway's tokens."""
        return self._env | variables_of_child(self._folders) | dict.fromkeys(_OF_GATEWAY, "")

    @property
    def _env(self) -> dict[str, str]:
        return self.settings.to_env() | variables_of_child() | {CHECKED: "1"}

    def start(self) -> None:
        """Start all processes. The caller must call ``stop``, even if this fails.

        Raises:
          BrokerUnavailable: The broker does not reply.
          BrokerError: The broker must not be used as it is; see ``qserve.broker.doctor``.
        """
        require_gateway("an application that is served here")
        remove_abandoned()
        shm_folder.remove_abandoned()
        if self.settings.broker_url is None:
            with self._uninterrupted():
                self._broker = EmbeddedBroker(self.settings.broker_maxmemory)
                self._restarter.add(self._broker)
            key = self.settings.secret_key or secrets.token_hex(32).encode()
            self.settings = replace(self.settings, broker_url=self._broker.url, broker_embedded=True, secret_key=key)
        else:
            # imported on use: beside an embedded broker this process needs no client of a broker, which takes 10 MB
            import_module("qserve.broker.doctor").check_broker_of(self.settings)
        # -P: the working folder may be one that all users share, and must not be searched for modules
        python = [sys.executable, "-P", "-m"]
        gateway = ["qserve_gateway", "--host", self.host, "--port", str(self.port)]
        gateway += ["--workers", str(self.gateway_workers)]
        with self._uninterrupted():
            # processes that a killed gateway leaves behind hold its port, and would serve for a second at most
            child = Child("the gateway", [*python, *gateway], {**self._env, **self._gateway_env}, kills_orphans=True)
            self._restarter.add(child)
        with self._uninterrupted():
            # replicas that a killed supervisor leaves behind finish their calls, see `qserve_workers.process`
            child = Child("the workers' supervisor", [*python, "qserve_workers"], self.user_code_env)
            self._restarter.add(child)
        if self._broker is not None:
            self._broker.wait_ready()

    def serve_tasks(self, places: Iterable[Sequence[str]]) -> None:
        """Start a worker of Celery's tasks for each of its brokers that has queues of task consumers.

        Celery's broker may be away, and is waited for: it is not one of this cluster.

        Parameters:
          places: Celery's broker, its result backend and the name of each queue.
        """
        for broker, backend, queue in places:
            if (broker, backend) in self._task_brokers:
                continue  # that worker finds the queue among what is deployed
            self._task_brokers.add((broker, backend))
            variables = {"QSERVE_CELERY_BROKER": broker, "QSERVE_CELERY_BACKEND": backend}
            command = [sys.executable, "-P", "-m", "qserve", "tasks", "--queue", queue]
            with self._uninterrupted():
                self._restarter.add(Child("the worker of tasks", command, self._env | variables))

    def keep_running(self, what: str = "") -> None:
        """Restart what dies from now on, and let this user's other commands and programs find what runs here.

        Parameters:
          what: What is served, in their words; the name of this program by default.
        """
        self._restarter.begin()
        if self._announced_in is not None:
            return
        try:
            with self._uninterrupted():
                self._announced_in = self._broker.folder if self._broker is not None else PrivateFolder()
            announce(self._announced_in, what or Path(sys.argv[0]).name or "a program", self.url, self.settings)
        except OSError as error:
            log.warning("this run could not be registered, so `qserve status` needs --broker: %s", error)

    @property
    def has_broker(self) -> bool:
        """Whether the broker is one of its processes, so that its data ends with them."""
        return self._broker is not None

    def wait(self) -> None:
        """Wait until ``stop`` is called.

        Raises:
          DeployError: See ``check``.
        """
        while not self._stopped:
            self.check()
            self._restarter.wait_for_failure()

    def stop(self) -> None:
        """Stop all processes in the reverse order of their start, within five seconds even if they hang."""
        self._stopped = True
        self._restarter.pause()
        others = [child for child in self._restarter.children if child is not self._broker]
        for child in others:
            child.process.terminate()
        deadline = Deadline(STOP_TIMEOUT_S)
        for child in others:
            if child.wait(deadline.remaining_s() or 0.0) is None:
                child.kill()
        if self._broker is not None:
            self._broker.stop()
            # the values of this broker's requests; crash before this: at the next start
            shm_folder.remove_abandoned(ended=str(self._broker.folder.path))
            self._broker = None
        elif self._announced_in is not None:
            self._announced_in.remove()
        self._announced_in = None
        self._restarter.end()


def _check_address(host: str, port: int) -> None:
    """Refuse an address that is in use, before anything is started. The probe never listens: two must not meet."""
    if not isinstance(port, int) or not 1 <= port <= _HIGHEST_PORT:
        raise ValueError(f"a port is a whole number from 1 to {_HIGHEST_PORT}; got {port!r}")

    def bind(family: socket.AddressFamily, address: Any) -> None:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)

    listen(host, port, bind)
