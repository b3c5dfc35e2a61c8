"""An installation as it runs in production, each role a process of its own, for faults to be done to."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brokers import Broker
from commands import deploy_here
from http_client import Client
from ledger import DIAMOND, Ledger
from load import Call, HandleClient, HttpClient, Load, new_job
from processes import PATIENCE_S, QSERVE, Process, Site, free_port, is_alive, wait_until

from qserve.base.keyring import Keyring
from qserve.base.keys import GROUP, Keys
from qserve.base.settings import Settings
from qserve.calls.client import ClientPlane
from qserve.deploy.installation import ReplicaReports
from qserve.wire.application import ApplicationRecord
from qserve.wire.sealing import Seal
from qserve.wire.status import RUNNING, ReplicaStatus

SECRET = "the-key-of-this-test"
SEAL = Seal(Keyring(SECRET.encode()))
LEASE_S = 2.0
FAST = {"QSERVE_LEASE_S": str(LEASE_S), "QSERVE_STALL_LIMIT_S": "3", "QSERVE_SECRET_KEY": SECRET}
"""Settings that make the slow part of a recovery fast."""
_USERS = {"worker": "worker", "gateway": "gateway", "deploy": "deployer", "rollback": "deployer"}


class Stack:
    """A broker, one supervisor with the diamond's replicas, one gateway, and a client in this process.

    Parameters:
      site: Where all of it runs.
      replicas: Replicas of each of the diamond's three deployments.
      broker: The broker; None for a new one.
      guarded: Whether each command is a user of its own, with the rights of the sample ACL.
      env: Variables for all roles.
      url: How the roles reach the broker; None for directly.
    """

    def __init__(
        self,
        site: Site,
        *,
        replicas: int = 2,
        broker: Broker | None = None,
        guarded: bool = True,
        env: Mapping[str, str] | None = None,
        url: str | None = None,
    ) -> None:
        self.site = site
        self.replicas_wanted = replicas
        self.broker = broker or Broker(site, guarded=guarded)
        self.ledger = Ledger(site.folder / "ledger")
        self.env = {
            **FAST,
            "QSERVE_BROKER_URL": url or self.broker.url,
            "CHAOS_LEDGER": str(self.ledger.path),
            **(env or {}),
        }
        self.port = free_port()
        self.keys = Keys()
        self.processes: list[Process] = []
        self.write_app()
        self._fds: dict[int, int] = {}
        self._read: dict[int, int] = {}
        self._planes: list[ClientPlane] = []
        self._looking: ClientPlane | None = None

    # -- the roles ---------------------------------------------------------------------------------

    def write_app(self, version: int = 1, text: str = DIAMOND) -> None:
        """Write the application's module; ``version`` is what its answers carry."""
        text = text.replace("REPLICAS", str(self.replicas_wanted)).replace("VERSION = 1", f"VERSION = {version}")
        self.site.write("diamond.py", text)

    def command(self, *arguments: str, env: Mapping[str, str] | None = None, within: Sequence[str] = ()) -> Process:
        """Start ``qserve`` with these arguments in this installation; ``within`` goes in front of it."""
        command = [*within, *QSERVE, *arguments]
        process = self.site.start(command, cwd=self.site.folder, env=self.variables_of(arguments[0], env))
        self.processes.append(process)
        return process

    def variables_of(self, command: str, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """What a command is told, as the user of the broker that it is for."""
        variables = {**self.env, **(env or {})}
        user = _USERS.get(command, "operator")
        return {**variables, "QSERVE_BROKER_URL": self.broker.as_user(variables["QSERVE_BROKER_URL"], user)}

    def worker(self, *options: str, env: Mapping[str, str] | None = None, within: Sequence[str] = ()) -> Process:
        """Start a supervisor."""
        return self.command("worker", *(options or ("--name", "default")), env=env, within=within)

    def gateway(self, *options: str, port: int | None = None, env: Mapping[str, str] | None = None) -> Process:
        """Start a gateway."""
        return self.command("gateway", "--port", str(port or self.port), *options, env=env)

    def deploy(self, env: Mapping[str, str] | None = None) -> Process:
        """Deploy the module as it is now."""
        return self.command("deploy", "diamond:app", env=env)

    def start(
        self,
        *,
        worker: Mapping[str, str] | None = None,
        gateway: Mapping[str, str] | None = None,
        gateway_workers: int = 1,
    ) -> Stack:
        """Start all roles, and go on once requests are answered.

        Parameters:
          worker, gateway: Variables for these roles alone.
          gateway_workers: Processes of the gateway.
        """
        self.supervisor = self.worker(env=worker)
        self.front = self.gateway("--workers", str(gateway_workers), env=gateway)
        deploy_here("diamond:app", self.site.folder, self.variables_of("deploy"))
        wait_until(self.is_serving, description="the gateway is healthy")
        self.wait_replicas()
        self._fds = {pid: _fds(pid) for pid in (self.supervisor.pid, self.front.pid)}
        return self

    def is_serving(self) -> bool:
        """Whether the gateway says that it is healthy."""
        return Client(self.port).is_healthy()

    # -- clients -----------------------------------------------------------------------------------

    def plane(self, **settings: Any) -> ClientPlane:
        """A client of the broker in this process, on connections of its own."""
        chosen = {"broker_url": self.broker.url, "secret_key": SECRET.encode(), **settings}
        chosen["broker_url"] = self.broker.as_user(chosen["broker_url"], "gateway")
        plane = ClientPlane(Settings(**chosen))
        self._planes.append(plane)
        return plane

    def handles(self, timeout_s: float = PATIENCE_S, **settings: Any) -> HandleClient:
        """A client by handles."""
        return HandleClient(self.plane(**settings), timeout_s)

    def http(self, timeout_s: float = PATIENCE_S) -> HttpClient:
        """A client by HTTP."""
        return HttpClient(self.port, timeout_s)

    def load(self, **options: Any) -> Load:
        """Load by handles, already running."""
        return Load(self.handles(), **options).start()

    def ask(self, **more: Any) -> Call:
        """Send one request by handle, and wait for its end."""
        client = self.handles()
        call = client.send(new_job(**more))
        client.wait([call])
        return call

    def close(self) -> None:
        """Close the clients and end the roles while their broker is still there; the site ends the rest."""
        for plane in self._planes:
            plane.close()
        self.broker.client.close()
        for process in self.processes:
            if process.exit_code() is None:
                process.signal(signal.SIGTERM)
        for process in self.processes:
            process.stop()

    # -- what is there -----------------------------------------------------------------------------

    def record(self) -> ApplicationRecord:
        """The active version."""
        if self._looking is None:
            self._looking = self.plane()
        return self._looking.registry.get("default")

    def streams(self) -> list[str]:
        """The queues of the active version."""
        record = self.record()
        return [record.stream(self.keys, name) for name, one in record.deployments.items() if one.replicated]

    def replicas(self, deployment: str | None = None) -> list[ReplicaStatus]:
        """The replicas of the active version that run, by their own report."""
        version = self.record().version
        return [
            one
            for one in ReplicaReports(self.broker.client, self.keys, SEAL, "default").replicas()
            if one.state == RUNNING
            and one.version == version
            and deployment in (None, one.deployment)
            and is_alive(one.pid)
        ]

    def wait_replicas(self, timeout_s: float = 30.0) -> None:
        """Wait until as many replicas run as are wanted."""
        wanted = 3 * self.replicas_wanted
        wait_until(lambda: len(self.replicas()) == wanted, description=f"{wanted} replicas run", timeout_s=timeout_s)

    def wait_shared(self, deployment: str, other: Process) -> None:
        """Wait until as many replicas of a deployment run as are wanted, some of them of another worker."""

        def is_shared() -> bool:
            pids = {one.pid for one in self.replicas(deployment)}
            return len(pids) == self.replicas_wanted and not pids.isdisjoint(children_of(other.pid))

        wait_until(is_shared, description=f"two hosts run {deployment}")

    def consumers(self) -> dict[str, set[str]]:
        """The readers of each queue, as the broker knows them."""
        client = self.broker.client
        return {
            stream: {one["name"].decode() for one in client.xinfo_consumers(stream, GROUP)} for stream in self.streams()
        }

    def gateway_workers(self) -> list[int]:
        """The processes that serve HTTP."""
        return children_of(self.front.pid)

    def logs(self) -> str:
        """What all roles have said."""
        return "\n".join(process.output for process in self.processes)

    def new_logs(self) -> str:
        """What all roles have said since this was last asked."""
        said = []
        for process in self.processes:
            output = process.output
            said.append(output[self._read.get(process.pid, 0) :])
            self._read[process.pid] = len(output)
        return "\n".join(said)

    def fd_growth(self) -> dict[int, int]:
        """How many more files each long-lived process has open than after its start."""
        return {pid: _fds(pid) - count for pid, count in self._fds.items() if is_alive(pid)}


def children_of(pid: int) -> list[int]:
    """The living children of a process."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split() if is_alive(int(child))]


def kill(pid: int) -> None:
    """End a process at once."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def last(seconds: float) -> None:
    """Let a fault last for a while: its length is part of the row, and no condition tells of it."""
    threading.Event().wait(seconds)


def _fds(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
