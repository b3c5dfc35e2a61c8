"""Containers of one stack, with `docker compose`, or with podman where Docker does not reply.

Nothing of qserve is imported. Podman's compose is installed into a folder of its own if there is none.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BASE_IMAGES = ("docker.io/library/python:3.11-slim", "docker.io/library/redis:7")
_DOCKER = """\
of="--filter label=com.docker.compose.project=$COMPOSE_PROJECT_NAME --filter label=com.docker.compose.service"
if [ "$1 $2 $3" = "compose ps -q" ]; then  # which podman's compose does not have for one service
  shift 3
  for service; do podman ps -q $of="$service"; done
  exit
fi
[ "$1" = compose ] && shift && exec {compose} "$@"
exec podman "$@"
"""
_STORAGE = Path("/var/lib/containers/qserve-stack")


class StackError(Exception):
    """Raised when a stack does not do what it must."""


def wait_until(condition: Callable[[], Any], what: str, within_s: float) -> float:
    """Wait until a condition holds, and return how long it took. Errors of the way there count as no."""
    began = time.monotonic()
    last: object = None
    while time.monotonic() - began < within_s:
        try:
            last = condition()
            if last:
                return time.monotonic() - began
        except (OSError, StackError) as error:
            last = error
        time.sleep(0.1)
    raise StackError(f"not within {within_s:.0f} s: {what}; last seen: {last!r}")


def run(*command: str, env: dict[str, str], folder: Path = ROOT, timeout_s: float = 300.0) -> str:
    """Run a command and return what it wrote to its standard output."""
    done = subprocess.run(
        command, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s
    )
    if done.returncode != 0:
        said = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}".strip()
        raise StackError(f"{shlex.join(command)[:200]} ended with {done.returncode}:\n{said}")
    return done.stdout


class Engine:
    """The container engine of this machine."""

    def __init__(self) -> None:
        self.env = {**os.environ, "BUILDAH_FORMAT": "docker"}  # podman's own image format has no HEALTHCHECK
        self.is_podman = shutil.which("podman") is not None and not self._has_docker()
        self.name = "podman" if self.is_podman else "docker"
        self._bin = Path(tempfile.mkdtemp(prefix="qserve-stack-"))
        self._options: list[str] = []
        self._script("qserve", f'exec {shlex.quote(sys.executable)} -m qserve "$@"')
        if self.is_podman:
            self._use_overlay()
            self._fail_fast_at_names()
            self._options = self._build_options()
        self.compose = ["docker", "compose"]
        if self.is_podman:
            self.compose = [self._podman_compose(), "--podman-build-args", shlex.join(self._options)]
            self._script("docker", _DOCKER.format(compose=shlex.join(self.compose)))

    def __call__(self, *args: str, timeout_s: float = 300.0) -> str:
        """``docker ARGS``."""
        return run(self.name, *args, env=self.env, timeout_s=timeout_s)

    def build(self, context: Path, dockerfile: str, tag: str, target: str = "") -> None:
        """Build an image."""
        chosen = ["--target", target] if target else []
        file = str(context / dockerfile)
        self("build", *self._options, "-f", file, "-t", tag, *chosen, str(context), timeout_s=1800)

    def probe(self) -> None:
        """Raise StackError, in one line, if no stack can be tried on this machine, whatever its code is."""
        base, broker = BASE_IMAGES
        name, context = f"qserve-probe-{os.getpid()}", self._bin / "probe"
        context.mkdir()
        packages = "setuptools gunicorn emoji"  # some of those that the images install
        fetch = f"pip download -q --no-deps --no-cache-dir -d /tmp {packages}"
        (context / "Dockerfile").write_text(f"FROM {base}\nRUN {fetch}\n")
        self._must(f"{self.name} does not reply", "info")
        if not self.is_podman:
            self._must("docker has no compose", "compose", "version")
        for image in BASE_IMAGES:
            if image not in self("images", "--format", "{{.Repository}}:{{.Tag}}"):
                self._must(f"{image} is not here, and cannot be pulled", "pull", "-q", image)
        try:
            self._must("no network can be made", "network", "create", name)
            first = ("run", "-d", "--name", name, "--network", name, "--memory", "64m", "-p", "127.0.0.1::6379")
            self._must("no container can be started", *first, broker, "redis-server")
            again = ("run", "--rm", "--network", name, broker, "getent", "hosts", name)
            self._must("containers do not find each other by name", *again)
            build = ("build", *self._options, "--no-cache", "-t", name, str(context))
            self._must("images cannot be built: pip finds no packages in them", *build)
        finally:
            for command in (("rm", "-f", name), ("network", "rm", name), ("rmi", "-f", name)):
                with suppress(StackError, subprocess.TimeoutExpired):
                    self(*command)

    def _must(self, otherwise: str, *args: str) -> None:
        try:
            self(*args, timeout_s=180)
        except (StackError, OSError, subprocess.TimeoutExpired) as error:
            raise StackError(f"{otherwise} ({str(error).strip().splitlines()[-1][:200]})") from error

    def close(self) -> None:
        """Remove what is of this run alone."""
        shutil.rmtree(self._bin, ignore_errors=True)

    @property
    def path(self) -> str:
        """A PATH on which `docker` is this engine and `qserve` ours, so that commands of documents can be typed."""
        return f"{self._bin}:{self.env['PATH']}"

    def _script(self, name: str, text: str) -> None:
        (self._bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (self._bin / name).chmod(0o755)

    def _use_overlay(self) -> None:
        """Store layers as overlays where the kernel can: the tools' own driver copies an image for every layer."""
        if self("info", "--format", "{{.Store.GraphDriverName}}").strip() != "vfs":
            return
        conf = self._bin / "storage.conf"
        conf.write_text(f'[storage]\ndriver = "overlay"\nrunroot = "/run/qserve-stack"\ngraphroot = "{_STORAGE}"\n')
        overlay = self.env | {"CONTAINERS_STORAGE_CONF": str(conf)}
        try:
            known = run("podman", "images", "--format", "{{.Repository}}:{{.Tag}}", env=overlay).split()
            for image in set(BASE_IMAGES) - set(known):
                file = str(self._bin / "image.tar")
                run("podman", "save", "-q", "-o", file, image, env=self.env)
                run("podman", "load", "-q", "-i", file, env=overlay)
                Path(file).unlink()
        except StackError:
            return  # it is slower without
        self.env = overlay

    def _fail_fast_at_names(self) -> None:
        """Give up on a name after a second: podman asks the host's servers for a container that is away."""
        conf = self._bin / "containers.conf"
        given = Path("/etc/containers/containers.conf")
        text = given.read_text() if given.exists() else ""
        options = '[containers]\ndns_options = ["timeout:1", "attempts:1"]\n'
        conf.write_text(text.replace("[containers]\n", options, 1) if "[containers]\n" in text else text + options)
        self.env = self.env | {"CONTAINERS_CONF": str(conf)}

    def _build_options(self) -> list[str]:
        """Return the options with which pip finds packages in a build as it does on this machine."""
        said = run(sys.executable, "-m", "pip", "config", "list", env=self.env)
        found = [Path(one) for one in ("/etc/ssl/certs", "/etc/pip.conf", *re.findall(r"(/[\w./-]+)", said))]
        paths = dict.fromkeys(str(one) for one in found if one.is_dir() or (one.name == "pip.conf" and one.is_file()))
        names = [name for name in os.environ if re.fullmatch(r"PIP_\w+|SSL_CERT_FILE|REQUESTS_CA_BUNDLE", name)]
        mounts = [word for path in paths for word in ("-v", f"{path}:{path}:ro")]
        return ["--network=host", *mounts, *(word for name in names for word in ("--env", f"{name}={self.env[name]}"))]

    def _has_docker(self) -> bool:
        try:
            run("docker", "info", env=self.env, timeout_s=60)
        except (StackError, OSError, subprocess.TimeoutExpired):
            return False
        return True

    def _podman_compose(self) -> str:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qserve-compose"
        own = home / "bin" / "podman-compose"
        if not own.is_file() and (known := shutil.which("podman-compose")):
            return known
        if not own.is_file():
            run(sys.executable, "-m", "venv", str(home), env=self.env)
            run(str(home / "bin" / "pip"), "install", "-q", "podman-compose", env=self.env)
        return str(own)


class Stack:
    """The containers of one run."""

    def __init__(self, engine: Engine, folder: Path, services: tuple[str, ...], variables: dict[str, str]) -> None:
        self.engine, self.folder, self.services = engine, folder, services
        self.port = int(variables["QSERVE_PORT"])
        self.project = f"qserve-stack-{os.getpid()}-{folder.name.lower()}"
        self.env = engine.env | variables | {"COMPOSE_PROJECT_NAME": self.project, "PATH": engine.path}

    def compose(self, *args: str) -> str:
        """``docker compose ARGS`` on this stack."""
        return run(*self.engine.compose, *args, env=self.env, folder=self.folder)

    def shell(self, script: str, timeout_s: float = 300.0) -> str:
        """Run a script as it is typed in the stack's folder."""
        return run("bash", "-euc", script, env=self.env, folder=self.folder, timeout_s=timeout_s)

    def containers(self, service: str = "", *, all_states: bool = False) -> list[str]:
        """The ids of a service's running containers, or of all services'."""
        wanted = [f"label=com.docker.compose.project={self.project}"]
        wanted += [f"label=com.docker.compose.service={service}"] if service else []
        filters = [part for one in wanted for part in ("--filter", one)]
        return self.engine("ps", "-q", *(["-a"] if all_states else []), *filters).split()

    def execute(self, container: str, *command: str) -> str:
        """Run a command in a container."""
        return self.engine("exec", container, *command)

    def inspect(self, container: str) -> dict[str, Any]:
        """All that the engine knows of a container."""
        found: dict[str, Any] = json.loads(self.engine("inspect", container))[0]
        return found

    def networks(self, container: str) -> dict[str, str]:
        """A container's addresses by its networks."""
        found = self.inspect(container)["NetworkSettings"]["Networks"]
        return {name: network["IPAddress"] for name, network in found.items()}

    def replicas(self, service: str) -> dict[str, int]:
        """How many replicas run in each container of a service: children of its process 1."""
        found = {}
        for container in self.containers(service):
            found[container] = len(self.execute(container, "cat", "/proc/1/task/1/children").split())
        return found

    def scale(self, service: str, count: int) -> None:
        """Have so many containers of a service, each with a replica."""
        self.compose("up", "-d", "--no-build", "--no-deps", "--no-recreate", "--scale", f"{service}={count}", service)
        for surplus in self.containers(service)[: -count or None] if len(self.containers(service)) > count else []:
            self.engine("stop", "-t", "30", surplus)  # podman's compose only adds
            self.engine("rm", "-f", surplus)
        wait_until(lambda: [*self.replicas(service).values()] == [1] * count, f"{count} replicas of {service}", 60)

    @contextmanager
    def monitor(self) -> Iterator[list[str]]:
        """Every command that reaches the broker meanwhile, as a list that grows."""
        (broker,) = self.containers("broker")
        client = 'test -z "$REDISCLI_AUTH" && export REDISCLI_AUTH=$(cat /run/secrets/broker_password); exec redis-cli'
        lines: list[str] = []
        with subprocess.Popen(
            [self.engine.name, "exec", broker, "sh", "-c", f"{client} monitor"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=self.env,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            process.stdout.readline()  # OK
            thread = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
            thread.start()
            try:
                yield lines
            finally:
                # at the server: the engine's client, when stopped, may leave redis-cli behind in the container
                for line in self.execute(broker, "sh", "-c", f"{client} client list").splitlines():
                    facts = dict(one.split("=", 1) for one in line.split())
                    if facts["flags"] == "O":
                        self.execute(broker, "sh", "-c", f"{client} client kill id {facts['id']}")
                thread.join(5)
                process.terminate()

    def logs(self) -> str:
        """The last lines of every container."""
        return re.sub(r"\x1b\[[\d;]*m", "", self.compose("logs", "--tail", "12"))

    def leftovers(self) -> list[str]:
        """What the engine still has of this stack."""
        mine = ["--filter", f"name={self.project}", "-q"]
        volumes, networks = self.engine("volume", "ls", *mine), self.engine("network", "ls", *mine)
        return [*self.containers(all_states=True), *volumes.split(), *networks.split()]
