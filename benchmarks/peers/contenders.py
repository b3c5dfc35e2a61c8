"""The contenders: how each is started, and how the same faults are done to it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

import redis

from peers.processes import Place, descendants, free_port, wait_until
from qserve.embedded import find_server, server_command
from qserve.plane.connection import connect

CACHE = Path.home() / ".cache" / "qserve-bench"
DOWN_S = 1.0
"""How long a broker that was killed is away: as long as a service manager needs to start it again."""

_UPDATE_FOR_S = 90.0
_BROKER_FOR_S = 10.0
_NO_STATISTICS = {"RAY_USAGE_STATS_ENABLED": "0"}


def environment(name: str, *packages: str) -> Path:
    """The ``bin`` folder of a contender's own virtual environment, made on first use."""
    home = CACHE / name
    if not (home / "ready").exists():
        print(f"# making the environment of {name} in {home}", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([home / "bin" / "pip", "install", "--quiet", *packages], check=True)
        (home / "ready").touch()
    return home / "bin"


def _is_up(url: str) -> bool:
    """Whether a broker answers."""
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
    """Whether its clients send a request again that failed."""
    has_broker = True

    def __init__(self, place: Place) -> None:
        self.place = place
        self.port = free_port()

    def prepare(self) -> None:
        """Install what it needs."""

    def start(self) -> None:
        """Start all its processes; it may take a while until they answer."""
        raise NotImplementedError

    def http_process(self) -> int:
        """The process that holds the connections of clients."""
        raise NotImplementedError

    def restart_broker(self) -> None:
        """Kill the broker, and start it on the same data after ``DOWN_S``."""
        raise NotImplementedError

    def update(self) -> None:
        """Bring the version of the code that lies in the place into service, without an interruption if it can."""
        raise NotImplementedError

    def _forked_from(self, words: str) -> int:
        """A process whose command line has these words, and whose parent's has them as well."""
        below = descendants()
        for pid, (parent, command) in below.items():
            if words in command and words in below.get(parent, (0, ""))[1]:
                return pid
        raise TimeoutError(f"{self.label} has no process of {words}")


class Qserve(Contender):
    """``qserve run`` on its embedded broker, as it comes."""

    label = "qserve"

    def start(self) -> None:
        """See ``Contender``."""
        self._secret = os.urandom(32).hex()
        command = [sys.executable, "-m", "qserve", "run", "qserve_app:graph", "--port", str(self.port)]
        self.place.start(command, QSERVE_SECRET_KEY=self._secret)

    def http_process(self) -> int:
        """See ``Contender``."""
        return self._forked_from("qserve_gateway")

    def restart_broker(self) -> None:
        """See ``Contender``; ``qserve run`` does not start its broker again, so that is done here."""
        pid = next(pid for pid, (_, command) in descendants().items() if "broker.sock" in command)
        os.kill(pid, signal.SIGKILL)
        time.sleep(DOWN_S)
        if not _is_up(self._url):
            self.place.start(server_command(self._folder))
        wait_until(lambda: _is_up(self._url), "the embedded broker is back", _BROKER_FOR_S)

    @property
    def _folder(self) -> Path:
        return next(self.place.folder.glob("qserve-*/broker.sock")).parent

    @property
    def _url(self) -> str:
        return f"unix://{self._folder / 'broker.sock'}"

    def update(self) -> None:
        """See ``Contender``."""
        command = [sys.executable, "-m", "qserve", "deploy", "qserve_app:graph", "--broker", self._url]
        self.place.run(command, _UPDATE_FOR_S, QSERVE_SECRET_KEY=self._secret)


class QserveRetried(Qserve):
    """The same with clients that repeat what failed, under one ``Idempotency-Key``."""

    label = "qserve, clients retry"
    retries = True


class Ray(Contender):
    """Ray Serve on this machine alone, as it comes."""

    label = "Ray Serve"
    has_broker = False

    def prepare(self) -> None:
        """See ``Contender``."""
        self._python = environment("ray", "ray[serve]") / "python"

    def start(self) -> None:
        """See ``Contender``."""
        command = [str(self._python), "ray_main.py", "start", str(self.port), "address"]
        self.place.start(command, **_NO_STATISTICS)

    def http_process(self) -> int:
        """See ``Contender``."""
        return next(pid for pid, (_, command) in descendants().items() if command.startswith("ray::ProxyActor"))

    def update(self) -> None:
        """See ``Contender``."""
        address = (self.place.folder / "address").read_text()
        self.place.run(
            [str(self._python), "ray_main.py", "deploy", address], _UPDATE_FOR_S, RAY_USAGE_STATS_ENABLED="0"
        )


class RayRetried(Ray):
    """The same with clients that repeat what failed."""

    label = "Ray Serve, clients retry"
    retries = True


class Celery(Contender):
    """Flask, gunicorn and a Celery chain on Redis, with the settings that each has by itself."""

    label = "Celery"
    acks_late = False
    durable = False

    def prepare(self) -> None:
        """See ``Contender``."""
        self._bin = environment("celery", "celery", "redis", "packaging", "flask", "gunicorn")
        self._broker_port = free_port()
        self._workers: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """See ``Contender``."""
        self._start_broker()
        for queue in ("first", "middle", "last"):
            self._start_worker(queue)
        gunicorn = [
            str(self._bin / "gunicorn"),
            "-k",
            "gthread",
            "-w",
            "1",
            "--threads",
            "64",
            "--log-level",
            "warning",
        ]
        self.place.start([*gunicorn, "-b", f"127.0.0.1:{self.port}", "celery_app:app"], **self._settings)

    @property
    def _url(self) -> str:
        return f"redis://127.0.0.1:{self._broker_port}/0"

    @property
    def _settings(self) -> dict[str, str]:
        return {"KILLS_BROKER": self._url, "KILLS_ACKS_LATE": "1" if self.acks_late else ""}

    def _start_broker(self) -> None:
        command = [find_server(), "--port", str(self._broker_port), "--bind", "127.0.0.1"]
        command += ["--appendonly", "yes"] if self.durable else []
        self._broker = self.place.start(command)
        wait_until(lambda: _is_up(self._url), "the broker answers", _BROKER_FOR_S)

    def _start_worker(self, queue: str) -> None:
        command = [str(self._bin / "celery"), "-A", "celery_app:celery", "worker", "-Q", queue, "-c", "2"]
        command += ["-n", f"{queue}@kills", "--loglevel", "warning"]
        self._workers[queue] = self.place.start(command, **self._settings)

    def http_process(self) -> int:
        """See ``Contender``."""
        return self._forked_from("gunicorn")

    def restart_broker(self) -> None:
        """See ``Contender``."""
        self._broker.kill()
        self._broker.wait()
        self.place.forget(self._broker)
        time.sleep(DOWN_S)
        self._start_broker()

    def update(self) -> None:
        """Stop each worker as service managers do, and start it with the new code."""
        for queue, worker in list(self._workers.items()):
            worker.terminate()
            worker.wait(_UPDATE_FOR_S)
            self.place.forget(worker)
            self._start_worker(queue)


class CeleryAcksLate(Celery):
    """The same with what is recommended against loss: late acknowledgement, and an append-only file."""

    label = "Celery, acks late"
    acks_late = True
    durable = True


class CeleryRetried(CeleryAcksLate):
    """That with clients that repeat what failed."""

    label = "Celery, acks late, clients retry"
    retries = True


CONTENDERS: dict[str, type[Contender]] = {
    "qserve": Qserve,
    "qserve-retry": QserveRetried,
    "ray": Ray,
    "ray-retry": RayRetried,
    "celery": Celery,
    "celery-late": CeleryAcksLate,
    "celery-late-retry": CeleryRetried,
}
