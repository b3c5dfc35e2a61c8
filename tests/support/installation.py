"""One installation whose processes a test may harm: a broker that keeps its data, workers, and a caller in here."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from processes import PATIENCE_S, Process, Site, free_port, wait_until
from roles import Roles

from qserve.base.keys import GROUP, Keys
from qserve.base.settings import Settings
from qserve.broker.connection import connect
from qserve.calls.client import ClientPlane
from qserve.calls.ref import Call, Ref
from qserve.deploy.installation import ReplicaReports
from qserve.wire.status import RUNNING, ReplicaStatus

LEASE_S = 2.0
STALL_S = 1.0
FAST = {"QSERVE_LEASE_S": str(LEASE_S), "QSERVE_STALL_LIMIT_S": str(STALL_S)}

SHOP = """
import asyncio, os, re, resource, threading, time
import qserve

@qserve.deployment(max_concurrent_queries=100, graceful_shutdown_timeout_s=20)
class Machine:
    def __init__(self):
        self.files = []

    async def pid(self):
        return os.getpid()

    async def note(self, ledger, seconds=0.0):
        with open(ledger, "a") as file:
            file.write("x")
        await asyncio.sleep(seconds)
        return os.getpid()

    async def until_told(self, ledger):
        try:
            await asyncio.sleep(1e9)
        except asyncio.CancelledError:
            with open(ledger, "a") as file:
                file.write("told")
            raise

    async def items(self):
        yield 1
        await asyncio.sleep(1e9)

    def work(self, seconds=0.0, gate=""):
        if seconds:
            time.sleep(seconds)
        while gate and not os.path.exists(gate):
            time.sleep(0.01)
        return os.getpid()

    async def sleep_on_the_loop(self):
        time.sleep(1e9)

    def match_for_ever(self):
        re.match(r"(a+)+$", "a" * 40 + "b")

    def spin_in_a_thread(self):
        while True:
            pass

    def open_everything(self):
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        def take():
            while True:
                try:
                    self.files.append(open("/dev/null"))
                except OSError:
                    time.sleep(0.001)
        threading.Thread(target=take, daemon=True).start()
        time.sleep(0.1)
        return os.getpid()

app = Machine.bind()
"""


class Installation(Roles):
    """A broker, and the roles around it without a gateway.

    Parameters:
      site: Where all of it runs.
      source: The module's text.
    """

    def __init__(self, site: Site, source: str) -> None:
        self.broker_port = free_port()
        self.url = f"redis://127.0.0.1:{self.broker_port}/0"
        super().__init__(site, source, {"QSERVE_BROKER_URL": self.url, **FAST})
        self.broker = self.start_broker()
        self.client: redis.Redis = connect(self.url)
        self.plane = ClientPlane(Settings(broker_url=self.url, secret_key=b"the-key-of-this-test"))
        self.keys = Keys()

    def start_broker(self) -> Process:
        return self.site.start_broker(self.broker_port, "--appendonly", "yes")

    def serve(self, *, replicas: int = 1, url: str = "", **env: str) -> Process:
        """Start a worker and deploy; answers the worker once it has its replicas."""
        variables = {**({"QSERVE_BROKER_URL": url} if url else {}), **env}
        process = self.worker("--replicas", str(replicas), **variables)
        self.deploy_here()
        self.wait_running(replicas)
        return process

    def type(self, document: str, word: str, **env: str) -> Process:
        """Type the bash block of a document that has a word at this broker with its key; its last command may go on."""
        text = (Path(__file__).parents[2] / "docs" / document).read_text()
        (block,) = [block for block in re.findall(r"^```bash\n(.*?)\n```", text, re.S | re.M) if word in block]
        own = f"QSERVE_BROKER_URL={self.url} QSERVE_SECRET_KEY={self.env['QSERVE_SECRET_KEY']}"
        commands, replaced = re.subn(r"QSERVE_BROKER_URL=\S+ QSERVE_SECRET_KEY=\S+", own, block)
        assert replaced, block
        *first, last = commands.splitlines()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return self.site.start(["bash", "-euc", "\n".join([*first, f"exec {last}"])], env={"PATH": path, **env})

    def replicas(self) -> list[ReplicaStatus]:
        return [
            one
            for one in ReplicaReports(self.client, self.keys, self.plane.seal, "default").replicas()
            if one.state == RUNNING
        ]

    def pids(self) -> set[int]:
        return {one.pid for one in self.replicas()}

    def wait_running(self, count: int, but: set[int] | None = None, timeout_s: float = PATIENCE_S) -> set[int]:
        """Wait for so many replicas, none of which is one of ``but``."""
        return wait_until(
            lambda: pids if len(pids := self.pids()) == count and not pids & (but or set()) else None,
            description=f"{count} replicas run",
            timeout_s=timeout_s,
        )

    def call(self, method: str, *args: Any, timeout_s: float | None = None) -> Ref:
        return self.plane.submit(Call("default", "Machine", method, args, timeout_s=timeout_s))

    def stream(self, method: str, timeout_s: float | None = None) -> Any:
        return self.plane.submit(Call("default", "Machine", method, timeout_s=timeout_s, stream=True))

    def ask(self, method: str, *args: Any, timeout_s: float = PATIENCE_S) -> Any:
        return self.call(method, *args).result(timeout_s)

    @property
    def queue(self) -> str:
        (name,) = [key.decode() for key in self.client.scan_iter("*:q:default:*:Machine")]
        return name

    def pending(self) -> int:
        found: Any = self.client.xpending(self.queue, GROUP)
        return int(found["pending"])

    def close(self) -> None:
        self.plane.close()
        self.client.close()


@contextlib.contextmanager
def installed(site: Site, source: str) -> Iterator[Installation]:
    """An installation whose connections are closed at the end; the site ends its processes."""
    installation = Installation(site, source)
    try:
        yield installation
    finally:
        installation.close()
