"""What user code does with processes; a module of its own, since processes that are spawned import their targets."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

WAIT_S = 20.0
_POLL_INTERVAL_S = 0.005


def code_of(pid: int) -> int | str:
    """How a child has ended; one that goes on is killed."""
    give_up = time.monotonic() + WAIT_S
    while time.monotonic() < give_up:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(_POLL_INTERVAL_S)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "it went on"


def fork(child: Callable[[], Any]) -> Any:
    """Fork, and have the child end what forked it in its own way; returns the exit code to the parent."""
    pid = os.fork()
    if pid == 0:
        return child()
    return code_of(pid)


def nothing() -> str:
    return "of the child"


def leave() -> None:
    sys.exit(7)


def leave_at_once() -> None:
    os._exit(9)


def fail() -> None:
    raise ValueError("in the child")


def double(value: int) -> int:
    return 2 * value


def process(target: Callable[..., Any], *args: Any, method: str = "fork") -> Any:
    started = multiprocessing.get_context(method).Process(target=target, args=args)
    started.start()
    return started


def joined(target: Callable[..., Any], method: str = "fork") -> Any:
    started = process(target, method=method)
    started.join(WAIT_S)
    return started.exitcode


def sleep(ready: Any) -> None:
    ready.set()
    time.sleep(2 * WAIT_S)


def killed(number: int, when_ready: bool = False) -> Any:
    """The exit code of a process that gets a signal: at once, or when it sleeps."""
    ready = multiprocessing.get_context("fork").Event()
    started = process(sleep, ready)
    if when_ready:
        ready.wait(WAIT_S)
    os.kill(started.pid, number)
    started.join(WAIT_S)
    return started.exitcode


def in_pool(method: str) -> Any:
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        return list(pool.map(double, range(3)))


def in_pool_of_multiprocessing() -> Any:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(double, range(3))


def run_in_child() -> Any:
    """An event loop of the child's own."""
    return fork(lambda: sys.exit(asyncio.run(asyncio.sleep(0, 5))))


def held_by_child() -> Any:
    """Which sockets and event loops of its parent a child holds, and which handlers of signals."""
    read, write = os.pipe()
    if os.fork() == 0:
        entries = [*Path("/proc/self/fd").iterdir()]
        links = [str(entry.readlink()) for entry in entries if entry.is_symlink()]
        names = [link for link in links if link.startswith(("socket:", "anon_inode:[eventpoll"))]
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
        names += [name.name for name, kind in handlers.items() if kind not in (0, signal.default_int_handler)]
        names += ["wake-up descriptor"] if signal.set_wakeup_fd(-1) >= 0 else []
        os.write(write, repr(names).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        return pipe.read()


def _sleep(report: Any = None) -> None:
    if report is not None:
        report.send(os.getpid())
    time.sleep(10 * WAIT_S)


def _sleep_beside(report: Any) -> None:
    """Start a process, and end before it does."""
    process(_sleep, report)
    os._exit(0)


def _become_daemon(report: Any) -> None:
    os.setsid()
    if os.fork():
        os._exit(0)
    _sleep(report)


def family() -> dict[str, int]:
    """Start processes in every way that a program has, and return their ids; none of them ends by itself."""
    nap = ["sleep", str(10 * WAIT_S)]
    pids = {
        "forked": process(_sleep).pid,
        "spawned": process(_sleep, method="spawn").pid,
        "program": subprocess.Popen(nap).pid,
        "program with a session of its own": subprocess.Popen(nap, start_new_session=True).pid,
        "in the background of a shell": int(
            subprocess.run(f"{' '.join(nap)} >/dev/null 2>&1 & echo $!", shell=True, capture_output=True).stdout
        ),
    }
    for name, target in {"of a process that has ended": _sleep_beside, "daemon": _become_daemon}.items():
        here, there = multiprocessing.Pipe()
        started = process(target, there)
        pids[name] = here.recv()
        started.join()
    thread = threading.Thread(target=lambda: pids.update({"of a thread": process(_sleep).pid}))
    thread.start()
    thread.join()
    return pids


def joined_and_gone(method: str) -> int | None:
    """End as well what Python keeps for further processes: this may be the process of the tests."""
    code = joined(nothing, method)
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]
    return code


ACTIONS: dict[str, tuple[Callable[[], Any], Any]] = {
    "sys.exit": (lambda: fork(leave), 7),
    "os._exit": (lambda: fork(leave_at_once), 9),
    "error": (lambda: fork(fail), 1),
    "return": (lambda: fork(nothing), 0),
    "a loop in the child": (run_in_child, 5),
    "process": (lambda: joined(nothing), 0),
    "process that exits": (lambda: joined(leave), 7),
    "process that fails": (lambda: joined(fail), 1),
    "terminate": (lambda: killed(signal.SIGTERM), -signal.SIGTERM),
    "terminate later": (lambda: killed(signal.SIGTERM, when_ready=True), -signal.SIGTERM),
    "hang up": (lambda: killed(signal.SIGHUP), -signal.SIGHUP),
    "interrupt": (lambda: killed(signal.SIGINT, when_ready=True), 1),
    "spawn": (lambda: joined_and_gone("spawn"), 0),
    "forkserver": (lambda: joined_and_gone("forkserver"), 0),
    "pool": (in_pool_of_multiprocessing, [0, 2, 4]),
    "executor": (lambda: in_pool("fork"), [0, 2, 4]),
    "subprocess": (lambda: subprocess.run([sys.executable, "-c", "exit(4)"]).returncode, 4),
}
"""Each with what it returns in any program."""
EVERYWHERE = ("sys.exit", "error", "process", "terminate")
"""Those that are tried wherever user code is entered; the others in one place."""


def act(name: str) -> Any:
    action, _ = ACTIONS[name]
    return action()
