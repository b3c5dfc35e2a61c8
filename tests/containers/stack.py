"""Bring stacks up with real containers, do to them what happens in production, and hold them to what docs/deploy says.

    python tests/containers/stack.py [--if-possible] [committed] [generated]

Once with docker-compose.yml of this repository, and once with what `qserve compose` writes for another application.
With --if-possible, a machine that cannot start containers, or cannot build images, is no failure.
The project's name and the port are the run's own; images are tagged ``stack-test`` and stay, as a cache for the next
run. Nothing of qserve is imported: the stacks are judged from outside.
"""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import NoReturn

from engine import Engine, StackError, wait_until
from load import Client, Load
from projects import Committed, Generated, Project

# what a MONITOR of Redis writes for a call of a function: time, database and address, name, arguments
_FUNCTION_CALL = re.compile(r'^[\d.]+ \[\d+ ([\d.]+):\d+\] "FCALL" (.*)$')
# what is cut off is noticed by its heartbeat, which ends after 15 s, at two looks 5 s apart
_TAKE_OVER_S = 60.0


def start(project: Project) -> str:
    """The images build, and the stack starts."""
    return project.start()


def answer(project: Project) -> str:
    """The stack answers."""
    first, _ = project.answers("Dora")
    took = wait_until(lambda: Client(project).ask(timeout_s=5) == first, first, 90)
    return f"{first!r} on port {project.port}, {took:.1f} s after `up` came back"


def hardening(project: Project) -> str:
    """No root, nothing to write on but /tmp, no port but the gateway's."""
    stack, services = project.stack, ("gateway", *project.services)
    for service in services:
        container, *_ = stack.containers(service)
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
        for service in ("broker", *services)
        for ports in (stack.inspect(stack.containers(service)[0])["NetworkSettings"]["Ports"] or {}).values()
        if ports
    }
    if published != {"gateway"}:
        raise StackError(f"ports are published by {published or 'nobody'}")
    return "user 10001, no capabilities, read-only roots, limits, one published port"


def health(project: Project) -> str:
    """Every container's health check passes."""
    services = ("broker", "gateway", *project.services)
    for service in services:
        container, *_ = project.stack.containers(service)
        wait_until(lambda one=container: _is_healthy(project, one), f"{service} is healthy", 60)  # type: ignore[misc]
    return ", ".join(services)


def _is_healthy(project: Project, container: str) -> bool:
    if project.engine.is_podman:  # without a timer of the engine's own
        project.engine("healthcheck", "run", container)
        return True
    return bool(project.stack.inspect(container)["State"]["Health"]["Status"] == "healthy")


def scale(project: Project) -> str:
    """Under load, to three containers with a replica in each, which share the calls, and down to two."""
    stack = project.stack
    with Load(project) as load:
        load.more(20, 30)
        stack.scale(project.step, 3)
        shares = _shares(project)
        stack.scale(project.step, 2)
        load.more(50, 30)
    others = [service for service in project.services if service != project.step]
    if any(len(stack.containers(service)) != 1 for service in others):
        raise StackError("other services were scaled too")
    return f"{load.judge()}; calls ended by each of three: {shares}"


def _shares(project: Project) -> str:
    """Return how many calls each container of the step ends, as the broker sees it."""
    stack = project.stack
    names = {address: one for one in stack.containers(project.step) for address in stack.networks(one).values()}

    def ended(lines: list[str]) -> Counter[str]:
        calls = [found for line in list(lines) if (found := _FUNCTION_CALL.match(line))]
        return Counter(names[one[1]] for one in calls if one[1] in names and f':{project.deployment}"' in one[2])

    with stack.monitor() as lines:
        wait_until(lambda: len(ended(lines)) == 3 and ended(lines).total() >= 100, "three share", 30)
    return ", ".join(str(count) for _, count in ended(lines).most_common())


def deploy_again(project: Project) -> str:
    """A new version takes over from the old one without a failed request."""
    with Load(project) as load:
        load.more(20, 30)
        project.stack.compose("run", "--rm", "--no-deps", "deploy")
        load.more(50, 30)
    return load.judge()


def kill(project: Project) -> str:
    """A worker's container is killed; requests go on being answered, those that it held as well."""
    stack = project.stack
    victim, *_ = stack.containers(project.step)
    with Load(project) as load:
        load.more(20, 30)
        stack.engine("kill", "-s", "KILL", victim)
        load.more(100, 30)  # the others go on at once
    said = load.judge()  # leaving the load has waited for the requests that the victim held
    if max(load.times_s) > _TAKE_OVER_S:
        raise StackError(f"a request waited too long: {said}")
    stack.engine("rm", "-f", victim)
    stack.scale(project.step, 2)
    return said


def cut(project: Project) -> str:
    """A worker's container loses the network, and gets it back; others run what it held."""
    stack = project.stack
    victim, *_ = stack.containers(project.step)
    (network,) = stack.networks(victim)
    with Load(project) as load:
        load.more(20, 30)
        stack.engine("network", "disconnect", network, victim)
        load.all_pending(_TAKE_OVER_S)  # those that it held as well
        stack.engine("network", "connect", network, victim)
        load.more(50, 60)
    said = load.judge()
    if max(load.times_s) > _TAKE_OVER_S:
        raise StackError(f"a request waited too long: {said}")
    return said


def stop(project: Project) -> str:
    """A worker that is told to stop finishes what it runs and ends by itself: the one that was cut off and is back."""
    stack = project.stack
    # it must not be the one that is left: podman's DNS sometimes fails for good in a container that was disconnected
    leaving, *_ = stack.containers(project.step)
    with Load(project) as load:
        load.more(20, 30)
        began = time.monotonic()
        stack.engine("stop", "-t", "30", leaving)
        took = time.monotonic() - began
        load.more(20, 30)
    said = load.judge()
    if (code := stack.inspect(leaving)["State"]["ExitCode"]) != 0:
        raise StackError(f"it ended with {code}")
    if took > 15:
        raise StackError(f"it took {took:.1f} s, and its calls take milliseconds")
    stack.engine("rm", "-f", leaving)
    return f"exit code 0 after {took:.1f} s; {said}"


def kill_broker(project: Project) -> str:
    """The broker's container is killed; what was accepted is answered, and nothing has to be deployed again."""
    stack = project.stack
    (victim,) = stack.containers("broker")
    with Load(project, may_refuse=True) as load:
        load.more(50, 30)
        stack.engine("kill", "-s", "KILL", victim)
        # podman takes the name out of its DNS a moment later, and would take out that of a container that has started
        wait_until(lambda: not stack.inspect(victim)["State"]["Running"], "the broker has ended", 30)
        time.sleep(2.0)
        stack.engine("start", victim)
        load.more(50, 90)
    return load.judge()


def roll_out(project: Project) -> str:
    """A new image takes over from the old one; each answer comes from one of them."""
    project.change()
    with Load(project) as load:
        load.more(20, 30)
        project.roll_out()
        load.more(50, 30)
    said = load.judge()
    if Client(project).ask() != project.answers("Dora")[1]:
        raise StackError("the old version still answers")
    return f"{said}; {load.versions[1]} from the old image, {load.versions[2]} from the new one"


def down(project: Project) -> str:
    """Nothing is left."""
    stack = project.stack
    stack.compose("down", "-v", "--remove-orphans")
    for container in stack.containers(all_states=True):
        stack.engine("rm", "-f", container)
    left = stack.leftovers()
    project.remove()
    if left:
        raise StackError(f"still there: {', '.join(left)}")
    return "no container, no network, no volume left"


IF_POSSIBLE = "--if-possible"
STEPS = (start, answer, hardening, health, scale, deploy_again, kill, cut, stop, kill_broker, roll_out, down)


def main(names: list[str]) -> int:
    """Run the steps for each stack, and return the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    if IF_POSSIBLE in names:
        names = [name for name in names if name != IF_POSSIBLE]
        try:
            _probe()
        except (StackError, OSError, subprocess.TimeoutExpired) as error:
            print(f"stacks of containers: not tried, because {error}", flush=True)
            return 0
    engine = Engine()
    try:
        return max(_try(kind, engine) for kind in (Committed, Generated) if not names or kind.name in names)
    finally:
        engine.close()


def _probe() -> None:
    if not any(map(shutil.which, ("podman", "docker"))):
        raise StackError("there is neither podman nor docker here")
    engine = Engine()
    try:
        engine.probe()
    finally:
        engine.close()


def _try(kind: type[Committed] | type[Generated], engine: Engine) -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        project = kind(engine, free.getsockname()[1])
    print(f"{kind.name}: {project.stack.project}, with {engine.name}", flush=True)
    began = time.monotonic()
    step: Callable[[Project], str] = start
    try:
        for step in STEPS:
            at = time.monotonic()
            said = step(project)
            print(f"  {step.__name__:<15} {time.monotonic() - at:5.1f} s  {said}", flush=True)
    except (StackError, OSError, ValueError, subprocess.TimeoutExpired) as error:
        print(f"  {step.__name__:<15} FAILED: {error}", flush=True)
        _clean_up(project, show_logs=step is not start)
        return 1
    except BaseException:
        _clean_up(project, show_logs=False)
        raise
    print(f"all {len(STEPS)} steps passed in {time.monotonic() - began:.0f} s", flush=True)
    return 0


def _clean_up(project: Project, *, show_logs: bool) -> None:
    try:
        if show_logs:
            print(project.stack.logs(), flush=True)
            worker, *_ = project.stack.containers(project.step)
            print(project.stack.execute(worker, "qserve", "queues"), flush=True)
    except (StackError, subprocess.TimeoutExpired) as error:
        print(f"no logs: {error}", flush=True)
    try:
        down(project)
    except (StackError, subprocess.TimeoutExpired) as error:
        print(f"cleaning up failed, do it by hand: {error}", flush=True)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
