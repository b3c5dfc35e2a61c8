"""The contenders: how each is started, and how the same faults are injected into it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import redis
from harness.processes import Place, Service, descendants, free_port, wait_until

from peers.environments import environment
from peers.ledger import STEPS
from qserve.broker.connection import connect
from qserve.machine.embedded_broker import find_server, server_command

APPLICATIONS = Path(__file__).parent / "apps"
_UPDATE_FOR_S = 90.0
_BROKER_FOR_S = 10.0
_QSERVE = [sys.executable, "-m", "qserve"]
_TARGET = "qserve_app:graph"
# Ray listens on the address of the network by default, even with 127.0.0.1 in its settings
_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}


def _is_up(url: str) -> bool:
    """Return whether a broker replies."""
    with contextlib.suppress(redis.RedisError, OSError), contextlib.closing(connect(url)) as client:
        return bool(client.ping())
    return False


class Contender:
    """One way to serve the chain.

    Parameters:
      place: Where its processes run.
    """

    label = ""
    retries = False
    """Whether its clients resend a request that failed."""
    lacks: frozenset[str] = frozenset()
    """Faults that cannot be injected into it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.port = free_port()

    def prepare(self) -> None:
        """Install what it needs."""

    def start(self) -> None:
        """Start all its processes; it may take a while until they respond."""
        raise NotImplementedError

    def http_process(self) -> int:
        """Return the process that holds the connections of clients."""
        raise NotImplementedError

    def kill_worker(self) -> None:
        """Kill the processes of the middle step, and their supervisor."""
        raise NotImplementedError

    def is_of_worker(self, pid: int) -> bool:
        """Return whether ``kill_worker`` kills that process of the middle step."""
        return True

    def restart_broker(self) -> None:
        """Kill the broker, and restart it on its data after ``DOWN_S``."""
        raise NotImplementedError

    def update(self) -> None:
        """Deploy the current version of the code, without an interruption if the contender can."""
        raise NotImplementedError

    def _forked_from(self, words: str) -> int:
        """Return a process whose command line contains these words, and whose parent's does as well."""
        below = descendants()
        for pid, (parent, command) in below.items():
            if words in command and words in below.get(parent, (0, ""))[1]:
                return pid
        raise TimeoutError(f"{self.label} has no process of {words}")


class Qserve(Contender):
    """``qserve run`` on its embedded broker, with default settings."""

    label = "qserve"
    lacks = frozenset({"worker"})

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._secret = {"QSERVE_SECRET_KEY": os.urandom(32).hex()}

    def start(self) -> None:
        """See ``Contender``."""
        self.place.start([*_QSERVE, "run", _TARGET, "--port", str(self.port)], **self._secret)

    def http_process(self) -> int:
        """See ``Contender``."""
        return self._forked_from("qserve gateway")

    def restart_broker(self) -> None:
        """See ``Contender``; ``qserve run`` restarts it by itself, and without a pause."""
        server = Path(find_server()).name
        os.kill(next(pid for pid, (_, command) in descendants().items() if server in command), signal.SIGKILL)

    @property
    def _folder(self) -> Path:
        return next(self.place.folder.glob("qserve-*/broker.sock")).parent

    @property
    def _url(self) -> str:
        return f"unix://{self._folder / 'broker.sock'}"

    def update(self) -> None:
        """See ``Contender``."""
        self.place.run([*_QSERVE, "deploy", _TARGET, "--broker", self._url], _UPDATE_FOR_S, **self._secret)


class QserveRoles(Qserve):
    """Its roles started separately, as on several hosts: a broker, a worker for each step, a gateway."""

    label = "qserve, roles apart"
    lacks = frozenset()

    def start(self) -> None:
        """See ``Contender``."""
        self._folder.mkdir()
        self._broker = self.place.start(self.broker_command())
        workers = [*_QSERVE, "worker", "--broker", self._url, "--deployment"]
        self._workers = {step: self.place.start([*workers, step], **self._secret) for step in STEPS}
        self.place.start([*_QSERVE, "gateway", "--port", str(self.port), "--broker", self._url], **self._secret)
        self.update()

    def broker_command(self) -> list[str]:
        """Return the command of the broker; the embedded one never syncs, as its data end with its program."""
        return [*server_command(self._folder), "--appendfsync", "everysec"]

    @property
    def _folder(self) -> Path:
        return self.place.folder / "broker"

    def kill_worker(self) -> None:
        """See ``Contender``."""
        self._workers["middle"].kill()

    def restart_broker(self) -> None:
        """See ``Contender``."""
        self._broker.kill()


class QserveHosts(QserveRoles):
    """The same with a second worker for the middle step, as on another host, where the calls of the first go on."""

    label = "qserve, two workers a step"
    lacks = frozenset({"replica", "http", "broker", "update", "blocked"})

    def start(self) -> None:
        """See ``Contender``."""
        super().start()
        command = [*_QSERVE, "worker", "--broker", self._url, "--deployment", "middle"]
        self.place.start(command, **self._secret)

    def is_of_worker(self, pid: int) -> bool:
        """See ``Contender``."""
        return self._workers["middle"].has(pid)


class QserveRetried(Qserve):
    """The same with clients that resend a failed request with one ``Idempotency-Key``."""

    label = "qserve, clients retry"
    retries = True


class Ray(Contender):
    """Ray Serve on one machine, with default settings."""

    label = "Ray Serve"
    lacks = frozenset({"broker", "worker"})

    def prepare(self) -> None:
        """See ``Contender``."""
        self._python = environment("ray") / "python"

    def start(self) -> None:
        """See ``Contender``."""
        command = [str(self._python), "ray_main.py", "ray_app:chain", "start", str(self.port), "address"]
        self._settings = _RAY | {"RAY_AUTH_TOKEN": os.urandom(32).hex()}
        self.place.start(command, **self._settings)

    def http_process(self) -> int:
        """See ``Contender``."""
        return next(pid for pid, (_, command) in descendants().items() if command.startswith("ray::ProxyActor"))

    def update(self) -> None:
        """See ``Contender``."""
        address = (self.place.folder / "address").read_text()
        self.place.run(
            [str(self._python), "ray_main.py", "ray_app:chain", "deploy", address], _UPDATE_FOR_S, **self._settings
        )


class RayRetried(Ray):
    """The same with clients that resend a failed request."""

    label = "Ray Serve, clients retry"
    retries = True


class Celery(Contender):
    """Flask, gunicorn and a Celery chain on Redis, each with its default settings."""

    label = "Celery"
    acks_late = False
    durable = False

    def prepare(self) -> None:
        """See ``Contender``."""
        self._bin = environment("celery")
        broker_port = free_port()
        self._url = f"redis://127.0.0.1:{broker_port}/0"
        self._server = [find_server(), "--port", str(broker_port), "--bind", "127.0.0.1"]
        self._server += ["--appendonly", "yes"] if self.durable else []
        self._settings = {"KILLS_BROKER": self._url, "KILLS_ACKS_LATE": "1" if self.acks_late else ""}

    def start(self) -> None:
        """See ``Contender``."""
        self._broker = self.place.start(self._server)
        wait_until(lambda: _is_up(self._url), "the broker replies", _BROKER_FOR_S)
        self._workers = {step: self._start_worker(step, "v1") for step in STEPS}
        command = [str(self._bin / "gunicorn"), "-b", f"127.0.0.1:{self.port}", "-w", "1", "-k", "gthread"]
        command += ["--threads", "64", "--log-level", "warning", "celery_app:app"]
        self.place.start(command, **self._settings)

    def _start_worker(self, step: str, version: str) -> Service:
        command = [*self._celery, "worker", "-Q", step, "-c", "2", "-n", f"{step}-{version}@kills", "-l", "warning"]
        return self.place.start(command, **self._settings)

    @property
    def _celery(self) -> list[str]:
        return [str(self._bin / "celery"), "-A", "celery_app:celery"]

    def http_process(self) -> int:
        """See ``Contender``."""
        return self._forked_from("gunicorn")

    def kill_worker(self) -> None:
        """See ``Contender``."""
        self._workers["middle"].kill()

    def restart_broker(self) -> None:
        """See ``Contender``."""
        self._broker.kill()

    def update(self) -> None:
        """Start workers with the new code beside the old ones, and end the old ones once the new ones respond."""
        replaced, version = self._workers, self.place.version
        self._workers = {step: self._start_worker(step, version) for step in STEPS}
        nodes = ",".join(f"{step}-{version}@kills" for step in STEPS)
        wait_until(lambda: self._are_there(nodes), "the new workers respond", _UPDATE_FOR_S)
        for worker in replaced.values():
            worker.stop()
        for worker in replaced.values():
            worker.wait(_UPDATE_FOR_S)

    def _are_there(self, nodes: str) -> bool:
        try:
            self.place.run([*self._celery, "inspect", "ping", "-d", nodes], _BROKER_FOR_S, **self._settings)
        except RuntimeError:
            return False
        return True


class CeleryAcksLate(Celery):
    """The same with the settings recommended against loss: late acknowledgement, and an append-only file."""

    label = "Celery, acks late"
    acks_late = True
    durable = True


class CeleryRetried(CeleryAcksLate):
    """The same with late acknowledgement and clients that resend a failed request."""

    label = "Celery, acks late, clients retry"
    retries = True


CONTENDERS: dict[str, type[Contender]] = {
    "qserve": Qserve,
    "qserve-roles": QserveRoles,
    "qserve-hosts": QserveHosts,
    "qserve-retry": QserveRetried,
    "ray": Ray,
    "ray-retry": RayRetried,
    "celery": Celery,
    "celery-late": CeleryAcksLate,
    "celery-late-retry": CeleryRetried,
}
