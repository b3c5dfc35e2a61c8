#!/usr/bin/env python3
"""Measure what an installation costs that has nothing to do: processor time, broker commands, connections, memory.

    python benchmarks/idle.py                       # 3 and 64 deployments
    python benchmarks/idle.py --deployments 3 --tls # over TLS, which a process of its own ends, and is not counted
    python benchmarks/idle.py --deploy 4,16,32,64   # how long a deploy of so many deployments takes
    python benchmarks/idle.py --json idle.json      # the figures as data as well

Each deployment is a class with one replica. ``qserve run`` is started with all of them, left alone for ``--settle-s``,
and watched for ``--watch-s``. Processor time is user and system time of /proc/PID/stat, so it hardly depends on what
else the machine does; memory is the proportional set size of /proc/PID/smaps_rollup. A wake-up is a time that a process
went to sleep (``voluntary_ctxt_switches`` of all its threads). It needs Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import redis

from qserve.machine.embedded_broker import server_command

_TICKS = os.sysconf("SC_CLK_TCK")
_APPLICATION = """
import qserve

def named(name):
    class Model:
        def __call__(self, x: int) -> int:
            return x
    return qserve.deployment(name=name, ray_actor_options={"num_cpus": 0.001})(Model)

@qserve.deployment(ray_actor_options={"num_cpus": 0.001})
class Front:
    def __init__(self, *models):
        self.models = models
    async def __call__(self, request) -> str:
        return "here"

app = Front.bind(*(named(f"Model{number}").bind() for number in range(COUNT - 1)))
"""


@dataclass
class Row:
    """What one kind of process took."""

    role: str
    processes: int = 0
    core_percent: float = 0.0
    wakeups_s: float = 0.0
    pss_mb: float = 0.0


@dataclass
class Result:
    """What an idle installation took."""

    deployments: int
    tls: bool
    rows: list[Row] = field(default_factory=list)
    commands_per_minute: float = 0.0
    connections_per_minute: float = 0.0
    most: dict[str, float] = field(default_factory=dict)

    @property
    def core_percent(self) -> float:
        """Return the processor time of all processes, as percent of one core."""
        return sum(row.core_percent for row in self.rows)


def descendants(pid: int) -> list[int]:
    """Return a process and all that it has started."""
    found = [pid]
    for one in found:
        for thread in Path(f"/proc/{one}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, thread.read_text().split())
    return found


def role_of(pid: int) -> str:
    """Return what a process is."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    for word, role in (
        ("qserve replica", "replica"),
        ("qserve worker", "supervisor"),
        ("qserve_gateway", "gateway"),
        ("qserve gateway", "gateway"),
        ("gunicorn", "gateway"),
        ("valkey", "broker"),
        ("redis-server", "broker"),
        ("qserve", "qserve run"),
    ):
        if word in command:
            return role
    return command[:20] or "other"


def processor_s(pid: int) -> float:
    """Return the processor time that a process has used."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS
    return 0.0


def wakeups(pid: int) -> int:
    """Return how often the threads of a process went to sleep."""
    count = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(OSError):
            for line in status.read_text().splitlines():
                count += int(line.split()[1]) if line.startswith("voluntary_ctxt_switches") else 0
    return count


def pss_mb(pid: int) -> float:
    """Return the memory of a process; what it shares counts in parts."""
    with contextlib.suppress(OSError):  # one that has ended and is not buried has none
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _broker(folder: Path) -> Iterator[str]:
    """Run a broker with its data in a folder, and yield its socket."""
    command = [*server_command(folder), "--appendfsync", "always"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (folder / "broker.sock").exists():
        time.sleep(0.01)
    try:
        yield str(folder / "broker.sock")
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def tls_door(folder: Path, unix_socket: str) -> Iterator[str]:
    """Run a process that ends TLS in front of the broker, and yield the address that it gives the broker."""
    port, cert, key = _free_port(), folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    door = os.fork()
    if door == 0:
        asyncio.run(_serve_tls(port, cert, key, unix_socket))
    try:
        yield f"rediss://localhost:{port}/0?ssl_ca_certs={cert}"
    finally:
        os.kill(door, signal.SIGKILL)
        os.waitpid(door, 0)


async def _serve_tls(port: int, cert: Path, key: Path, unix_socket: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_unix_connection(unix_socket)
        await asyncio.gather(copy(reader, forth), copy(back, writer))

    server = await asyncio.start_server(join, "localhost", port, ssl=context)
    await server.serve_forever()


def measure(count: int, tls: bool, settle_s: float, watch_s: float) -> Result:
    """Start an installation, leave it alone, and return what it has cost."""
    with tempfile.TemporaryDirectory(prefix="idle-") as name, contextlib.ExitStack() as ends:
        folder, port = Path(name), _free_port()
        (folder / "idle_app.py").write_text(_APPLICATION.replace("COUNT", str(count)))
        env = {**os.environ, "TMPDIR": name}
        if tls:
            unix_socket = ends.enter_context(_broker(folder))
            url = ends.enter_context(tls_door(folder, unix_socket))
            env |= {"QSERVE_BROKER_URL": url, "QSERVE_SECRET_KEY": secrets.token_hex(32)}
        command = [sys.executable, "-m", "qserve", "run", "idle_app:app", "--port", str(port)]
        with (folder / "log").open("wb") as log:
            run = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=log)
        ends.callback(run.wait)
        ends.callback(run.terminate)
        assert run.stdout is not None
        if not any(b"qserve: ready" in line for line in run.stdout):
            raise SystemExit((folder / "log").read_text())
        time.sleep(settle_s)
        if not tls:
            (unix_socket,) = map(str, folder.glob("qserve-*/broker.sock"))
        client = redis.Redis(unix_socket_path=unix_socket)
        pids = [*descendants(run.pid), *([client.info("server")["process_id"]] if tls else ())]
        roles = {pid: role_of(pid) for pid in pids}
        before = {pid: (processor_s(pid), wakeups(pid)) for pid in pids}
        client.config_resetstat()
        connected = client.info("stats")["total_connections_received"]
        began = time.monotonic()
        time.sleep(watch_s)
        took_s = time.monotonic() - began
        info: Any = client.info("commandstats")
        result = Result(count, tls)
        result.connections_per_minute = (client.info("stats")["total_connections_received"] - connected) * 60 / took_s
        calls = Counter({one.removeprefix("cmdstat_"): stats["calls"] for one, stats in info.items()})
        calls.subtract({"info": 2, "config|resetstat": 1})
        result.commands_per_minute = round(calls.total() * 60 / took_s, 1)
        result.most = {one: round(number * 60 / took_s, 1) for one, number in calls.most_common(12)}
        rows: defaultdict[str, Row] = defaultdict(lambda: Row(""))
        for pid, (used_s, slept) in before.items():
            row = rows[roles[pid]]
            row.role, row.processes = roles[pid], row.processes + 1
            row.core_percent += 100 * (processor_s(pid) - used_s) / took_s
            row.wakeups_s += (wakeups(pid) - slept) / took_s
            row.pss_mb += pss_mb(pid)
        result.rows = list(rows.values())
        return result


def deploy_s(counts: list[int]) -> dict[int, float]:
    """Return how long ``qserve deploy`` of so many deployments takes, beside a worker that runs already."""
    found = {}
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="idle-") as name, contextlib.ExitStack() as ends:
            folder = Path(name)
            (folder / "idle_app.py").write_text(_APPLICATION.replace("COUNT", str(count)))
            unix_socket = ends.enter_context(_broker(folder))
            env = {
                **os.environ,
                "QSERVE_BROKER_URL": f"unix://{unix_socket}",
                "QSERVE_SECRET_KEY": secrets.token_hex(32),
            }
            worker = subprocess.Popen(
                [sys.executable, "-m", "qserve", "worker"], cwd=folder, env=env,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            ends.callback(worker.wait)
            ends.callback(worker.terminate)
            time.sleep(2.0)
            command = [sys.executable, "-m", "qserve", "deploy", "idle_app:app"]
            deploy = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
            took = re.search(r" replicas, in ([0-9.]+) s", deploy.stdout)
            if took is None:
                raise SystemExit(deploy.stdout + deploy.stderr)
            found[count] = float(took[1])
            print(f"| {count} | {found[count]:.2f} |", flush=True)
    return found


def show(result: Result) -> None:
    """Print a table."""
    over = ", over TLS" if result.tls else ""
    print(f"\n{result.deployments} deployments{over}: {result.core_percent:.2f} % of a core,"
          f" {sum(row.pss_mb for row in result.rows):.0f} MB, {result.commands_per_minute:.0f} broker commands and"
          f" {result.connections_per_minute:.1f} connections a minute\n")  # fmt: skip
    print("| role | processes | % of a core | wake-ups a second | PSS, MB |\n" + "| --- " * 5 + "|")
    for row in result.rows:
        print(f"| {row.role} | {row.processes} | {row.core_percent:.3f} | {row.wakeups_s:.1f} | {row.pss_mb:.1f} |")
    print("\na minute: " + ", ".join(f"{name} {number:g}" for name, number in result.most.items()), flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deployments", default="3,64")
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--settle-s", type=float, default=20.0)
    parser.add_argument("--watch-s", type=float, default=40.0)
    parser.add_argument("--deploy", default="", help="measure deploys of so many deployments instead")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.deploy:
        print("| deployments | deploy s |\n| --- | --- |")
        found: Any = deploy_s([int(one) for one in given.deploy.split(",")])
    else:
        found = []
        for count in given.deployments.split(","):
            result = measure(int(count), given.tls, given.settle_s, given.watch_s)
            show(result)
            found.append(asdict(result))
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
