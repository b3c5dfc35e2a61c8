"""Bring docker-compose.yml up with real containers and hold it to what docs/deployment.md says.

    python tests/containers/stack.py

With ``docker compose``, or with the tools in the folder ``$QSERVE_CONTAINERS`` (by default
``shared/containers`` beside the repository): ``build.sh DOCKERFILE TAG CONTEXT`` and ``compose.sh ARGS``
over podman. The project's name and the port are the run's own; images are tagged ``stack-test`` and stay,
as a cache for the next run. Nothing of qserve is imported: the stack is judged from outside.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(os.environ.get("QSERVE_CONTAINERS") or ROOT.parent / "shared" / "containers")
TAG = "stack-test"
WORKERS = ("spanish", "french", "classifier")
# what a MONITOR of Redis writes for a call of a function: time, database and address, name, arguments
_FUNCTION_CALL = re.compile(r'^[\d.]+ \[\d+ ([\d.]+):\d+\] "FCALL" (.*)$')
# a killed host is noticed by its heartbeat, which ends after 15 s, at two looks 5 s apart
_TAKE_OVER_S = 40.0


class StackError(Exception):
    """Raised when the stack does not do what it must."""


@dataclass
class Stack:
    """One run's containers."""

    port: int
    project: str = field(default_factory=lambda: f"qserve-stack-{os.getpid()}")

    def __post_init__(self) -> None:
        self.has_tools = (TOOLS / "compose.sh").is_file()
        self._engine = "podman" if self.has_tools else "docker"
        compose = [str(TOOLS / "compose.sh")] if self.has_tools else ["docker", "compose"]
        self._compose = [*compose, "-p", self.project, "-f", str(ROOT / "docker-compose.yml")]
        self._env = os.environ | {
            "QSERVE_PORT": str(self.port),
            "QSERVE_TAG": TAG,
            "QSERVE_BROKER_PASSWORD": secrets.token_hex(16),
            "QSERVE_SECRET_KEY": secrets.token_hex(32),
            "BUILDAH_FORMAT": "docker",  # podman's own image format has no HEALTHCHECK
        }

    def run(self, *command: str, timeout_s: float = 300.0) -> str:
        """Run a command; answers what it wrote to its standard output."""
        done = subprocess.run(
            command, cwd=ROOT, env=self._env, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=timeout_s,
        )  # fmt: skip
        if done.returncode != 0:
            said = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}".strip()
            raise StackError(f"{' '.join(command)} ended with {done.returncode}:\n{said}")
        return done.stdout

    def compose(self, *args: str) -> str:
        """``docker compose ARGS`` on this stack."""
        return self.run(*self._compose, *args)

    def engine(self, *args: str) -> str:
        """``docker ARGS``."""
        return self.run(self._engine, *args)

    def build(self) -> None:
        """Make both images."""
        if not self.has_tools:
            self.compose("build")
            return
        for folder, image in (("workers", "qserve-worker"), ("gateway", "qserve-gateway")):
            script = str(TOOLS / "build.sh")
            self.run(script, f"{folder}/Dockerfile", f"{image}:{TAG}", ".", timeout_s=1800)

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

    def addresses(self, container: str) -> set[str]:
        """A container's addresses in the stack's network."""
        networks = self.inspect(container)["NetworkSettings"]["Networks"].values()
        return {one["IPAddress"] for one in networks}

    def replicas(self, service: str) -> dict[str, int]:
        """How many replicas run in each container of a service: children of its process 1."""
        found = {}
        for container in self.containers(service):
            found[container] = len(self.execute(container, "cat", "/proc/1/task/1/children").split())
        return found

    @contextmanager
    def monitor(self) -> Iterator[list[str]]:
        """Every command that reaches the broker meanwhile, as a list that grows."""
        (broker,) = self.containers("broker")
        command = [self._engine, "exec", broker, "redis-cli", "monitor"]
        lines: list[str] = []
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=self._env
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()  # OK
            thread = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
            thread.start()
            try:
                yield lines
            finally:
                # at the server: the engine's client, when stopped, may leave redis-cli behind in the container
                for client in self.execute(broker, "redis-cli", "client", "list").splitlines():
                    facts = dict(one.split("=", 1) for one in client.split())
                    if facts["flags"] == "O":
                        self.execute(broker, "redis-cli", "client", "kill", "id", facts["id"])
                thread.join(5)
                process.terminate()

    def logs(self) -> str:
        """The last lines of every container."""
        coloured = self.compose("logs", "--tail", "12")
        return re.sub(r"\x1b\[[\d;]*m", "", coloured)

    def leftovers(self) -> list[str]:
        """What the engine still has of this stack."""
        mine = ["--filter", f"name={self.project}", "-q"]
        volumes, networks = self.engine("volume", "ls", *mine), self.engine("network", "ls", *mine)
        return [*self.containers(all_states=True), *volumes.split(), *networks.split()]

    def ask(self, language: str = "spanish", name: str = "Dora", timeout_s: float = 90.0) -> str:
        """One request to the published port; answers the body."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/",
            json.dumps({"language": language, "name": name}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return str(response.read().decode())


class Load:
    """Requests, one after the other, from several threads until stopped; each answer is checked."""

    def __init__(self, stack: Stack, threads: int = 8) -> None:
        self._stack = stack
        self._stop = threading.Event()
        self.times_s: list[float] = []
        self.errors: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(one,)) for one in range(threads)]

    def _run(self, thread: int) -> None:
        number = 0
        while not self._stop.is_set():
            name = f"Dora {thread}.{number}"
            number += 1
            began = time.monotonic()
            try:
                said = self._stack.ask(name=name)
                if said != f"Hola {name}":
                    self.errors.append(f"{name} was answered {said!r}")
            except OSError as error:
                self.errors.append(f"{name}: {error}")
                self._stop.wait(0.1)  # a stack that refuses everything must not fill the list
            self.times_s.append(time.monotonic() - began)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int, within_s: float) -> None:
        """Wait until so many more requests have been answered."""
        wanted = len(self.times_s) + count
        wait_until(lambda: len(self.times_s) >= wanted, f"{count} more answers", within_s)

    def judge(self) -> str:
        """Raise when a request failed; answers a summary."""
        if self.errors:
            some = "\n".join(self.errors[:5])
            raise StackError(f"{len(self.errors)} of {len(self.times_s)} requests failed:\n{some}")
        return f"{len(self.times_s)} requests, none failed, slowest {max(self.times_s):.1f} s"


def wait_until(condition: Callable[[], Any], what: str, within_s: float) -> float:
    """Wait until a condition holds; answers how long it took. Errors of the way there count as no."""
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


# -- the steps -------------------------------------------------------------------------------------


def build(stack: Stack) -> str:
    """Both images build."""
    stack.build()
    return f"qserve-worker:{TAG}, qserve-gateway:{TAG}"


def up(stack: Stack) -> str:
    """The stack answers."""
    stack.compose("up", "-d", "--no-build")
    took = wait_until(lambda: stack.ask(timeout_s=5) == "Hola Dora", "Hola Dora", 90)
    if stack.ask("french") != "Bonjour Dora":
        raise StackError("the French responder does not answer")
    return f"'Hola Dora' on port {stack.port}, {took:.1f} s after `up` came back"


def hardening(stack: Stack) -> str:
    """No root, nothing to write on but /tmp, no port but the gateway's."""
    for service in ("gateway", *WORKERS):
        (container,) = stack.containers(service)
        if (uid := stack.execute(container, "id", "-u").strip()) != "10001":
            raise StackError(f"{service} runs as user {uid}")
        facts = stack.inspect(container)
        if not facts["HostConfig"]["ReadonlyRootfs"]:
            raise StackError(f"{service}'s root is writable")
        status = stack.execute(container, "cat", "/proc/1/status")
        if not re.search(r"^CapBnd:\s+0+$", status, re.M) or not re.search(r"^NoNewPrivs:\s+1$", status, re.M):
            raise StackError(f"{service} has capabilities or may get some")
        host = facts["HostConfig"]
        if not host["Memory"] or (host["PidsLimit"] or 0) <= 0:
            raise StackError(f"{service} may take all of the host's memory or processes")
        mounts = stack.execute(container, "cat", "/proc/mounts")
        if not re.search(r"^tmpfs /tmp tmpfs (?=\S*nosuid)(?=\S*nodev)(?=\S*noexec)", mounts, re.M):
            raise StackError(f"{service} may run what it writes to /tmp")
    published = {
        service
        for service in ("broker", "gateway", *WORKERS)
        for ports in (stack.inspect(stack.containers(service)[0])["NetworkSettings"]["Ports"] or {}).values()
        if ports
    }
    if published != {"gateway"}:
        raise StackError(f"ports are published by {published or 'nobody'}")
    return "user 10001, no capabilities, read-only roots, limits, one published port"


def health(stack: Stack) -> str:
    """Every container's health check passes."""
    services = ("broker", "gateway", *WORKERS)
    for service in services:
        (container,) = stack.containers(service)
        if stack.has_tools:  # without a timer of the engine's own
            stack.engine("healthcheck", "run", container)
        else:
            check = lambda one=container: stack.inspect(one)["State"]["Health"]["Status"] == "healthy"  # noqa: E731
            wait_until(check, f"{service} is healthy", 60)
    return ", ".join(services)


def scale(stack: Stack) -> str:
    """Three containers of one service, with a replica in each."""
    stack.compose("up", "-d", "--no-build", "--no-deps", "--scale", "spanish=3", "spanish")
    wait_until(lambda: sorted(stack.replicas("spanish").values()) == [1, 1, 1], "three replicas", 60)
    if len(stack.containers("french")) != 1 or len(stack.containers("classifier")) != 1:
        raise StackError("other services were scaled too")
    return "spanish: 3 containers, 1 replica in each"


def share(stack: Stack) -> str:
    """The three share the requests: each of them ends calls of the queue, as the broker sees it."""
    names = {address: one[:12] for one in stack.containers("spanish") for address in stack.addresses(one)}

    def ended(lines: list[str]) -> Counter[str]:
        calls = [found for line in list(lines) if (found := _FUNCTION_CALL.match(line))]
        return Counter(names[one[1]] for one in calls if one[1] in names and ':SpanishResponder"' in one[2])

    with stack.monitor() as lines, Load(stack) as load:
        wait_until(lambda: len(ended(lines)) == 3 and ended(lines).total() >= 200, "three share", 25)
    load.judge()
    shares = ended(lines)
    return f"calls ended by each replica: {', '.join(str(count) for _, count in shares.most_common())}"


def deploy_again(stack: Stack) -> str:
    """A new version takes over from the old one without a failed request."""
    with Load(stack) as load:
        load.more(20, 30)
        stack.compose("run", "--rm", "--no-deps", "deploy")
        load.more(50, 30)
    return load.judge()


def kill(stack: Stack) -> str:
    """A worker's container is killed; requests go on being answered, those that it held as well."""
    victim, *_ = stack.containers("spanish")
    with Load(stack) as load:
        load.more(20, 30)
        stack.engine("kill", "-s", "KILL", victim)
        load.more(200, 10)  # the others go on at once
    said = load.judge()  # leaving the load has waited for the requests that the victim held
    if max(load.times_s) > _TAKE_OVER_S:
        raise StackError(f"a request waited too long: {said}")
    if victim in stack.containers("spanish"):
        said += "; the engine started it again"
    return said


def stop(stack: Stack) -> str:
    """A worker that is told to stop finishes what it runs and ends by itself."""
    *_, leaving = stack.containers("spanish")
    with Load(stack) as load:
        load.more(20, 30)
        began = time.monotonic()
        stack.engine("stop", "-t", "30", leaving)
        took = time.monotonic() - began
        load.more(50, 30)
    said = load.judge()
    if (code := stack.inspect(leaving)["State"]["ExitCode"]) != 0:
        raise StackError(f"it ended with {code}")
    if took > 5:
        raise StackError(f"it took {took:.1f} s")
    return f"exit code 0 after {took:.1f} s; {said}"


def restart_broker(stack: Stack) -> str:
    """The broker comes back with the application; nothing has to be deployed again."""
    stack.compose("restart", "broker")
    took = wait_until(lambda: stack.ask(timeout_s=10) == "Hola Dora", "an answer after the restart", 60)
    return f"answers again {took:.1f} s after `restart` came back"


def down(stack: Stack) -> str:
    """Nothing is left."""
    stack.compose("down", "-v", "--remove-orphans")
    if left := stack.leftovers():
        raise StackError(f"still there: {', '.join(left)}")
    return "no container, no network, no volume left"


STEPS = (build, up, hardening, health, scale, share, deploy_again, kill, stop, restart_broker, down)


def main() -> int:
    """Run the steps in order; answers the exit code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        stack = Stack(free.getsockname()[1])
    signal.signal(signal.SIGTERM, _interrupt)
    print(f"stack {stack.project}, {f'tools in {TOOLS.name}' if stack.has_tools else 'docker compose'}", flush=True)
    began = time.monotonic()
    step: Callable[[Stack], str] = build
    try:
        for step in STEPS:
            at = time.monotonic()
            said = step(stack)
            print(f"  {step.__name__:<15} {time.monotonic() - at:5.1f} s  {said}", flush=True)
    except (StackError, OSError, ValueError, subprocess.TimeoutExpired) as error:
        print(f"  {step.__name__:<15} FAILED: {error}", flush=True)
        _clean_up(stack, show_logs=step is not build)
        return 1
    except BaseException:
        _clean_up(stack, show_logs=False)
        raise
    print(f"all {len(STEPS)} steps passed in {time.monotonic() - began:.0f} s", flush=True)
    return 0


def _clean_up(stack: Stack, *, show_logs: bool) -> None:
    try:
        if show_logs:
            print(stack.logs(), flush=True)
    except (StackError, subprocess.TimeoutExpired) as error:
        print(f"no logs: {error}", flush=True)
    try:
        down(stack)
    except (StackError, subprocess.TimeoutExpired) as error:
        print(f"cleaning up failed, do it by hand: {error}", flush=True)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
