"""What user code did, as it wrote it down itself: a line for each start, end and cancellation of an execution."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

DIAMOND = '''
"""The application under test: a diamond, whose nodes write down what they do."""

import asyncio, ctypes, os, time, uuid

import qserve
from qserve import DAGDriver, InputNode
from qserve.http_adapters import json_request

LEDGER = os.environ["CHAOS_LEDGER"]


def note(job, node, attempt, event, detail=""):
    line = f"{job['id']},{node},{attempt},{event},{os.getpid()},{time.monotonic():.6f},{detail}\\n"
    descriptor = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def misbehave(job, node):
    """Do what a poisoned request asks of a node."""
    what = job.get("do", {}).get(node)
    if what == "segfault":
        ctypes.string_at(0)
    elif what == "allocate":
        hoard = []
        while True:
            hoard.append(bytearray(16 << 20))
    elif what == "spin":
        while True:
            pass
    elif what == "regex":
        __import__("re").match("(a+)+$", "a" * 64 + "b")
    elif what == "block":
        time.sleep(1e9)


async def run(job, node, compute, detail=""):
    attempt = uuid.uuid4().hex
    note(job, node, attempt, "start", detail)
    misbehave(job, node)
    if job.get("block_s", {}).get(node):
        time.sleep(job["block_s"][node])
    while True:
        try:
            if job.get("sleep_s", {}).get(node):
                await asyncio.sleep(job["sleep_s"][node])
            while job.get("gate", {}).get(node) and not os.path.exists(job["gate"][node]):
                if node in job.get("tells", ()):
                    qserve.progress(None, str(os.getpid()))
                await asyncio.sleep(0.005)
            break
        except asyncio.CancelledError:
            note(job, node, attempt, "told")
            if not job.get("is_stubborn"):
                raise
    result = {"value": compute(job["x"]), "attempt": attempt, "version": VERSION}
    note(job, node, attempt, "end")
    return result


@qserve.deployment(num_replicas=REPLICAS, graceful_shutdown_timeout_s=5)
class Left:
    async def __call__(self, job):
        return await run(job, "left", lambda x: 2 * x)


@qserve.deployment(num_replicas=REPLICAS, graceful_shutdown_timeout_s=5)
class Right:
    async def __call__(self, job):
        return await run(job, "right", lambda x: x + 7)


@qserve.deployment(num_replicas=REPLICAS, graceful_shutdown_timeout_s=5)
class Join:
    async def __call__(self, job, left, right):
        seen = f"{left['attempt']}+{right['attempt']}"
        result = await run(job, "join", lambda x: left["value"] * 1000 + right["value"], seen)
        versions = [left["version"], right["version"], VERSION]
        answer = {"id": job["id"], "value": result["value"], "attempt": result["attempt"], "versions": versions}
        return answer


VERSION = 1
with InputNode() as job:
    left, right = Left.bind().__call__.bind(job), Right.bind().__call__.bind(job)
    output = Join.bind().__call__.bind(job, left, right)

app = DAGDriver.bind(output, http_adapter=json_request)
'''
"""REPLICAS is replaced by a number."""

NODES = ("left", "right", "join")


def reference(x: int) -> int:
    """What the diamond makes of its input, in plain Python."""
    return 2 * x * 1000 + x + 7


class Line(NamedTuple):
    """One line of the ledger.

    Parameters:
      attempt: Names one execution, for ever.
      event: ``start``, ``end``, or ``told`` that its request was cancelled or has expired.
      at: Of the monotonic clock, which all processes of a host share.
      detail: For ``join``: the attempts whose results it was given.
    """

    request: str
    node: str
    attempt: str
    event: str
    pid: int
    at: float
    detail: str


class Ledger:
    """The file that all replicas append to; a single short ``write`` to it is never torn."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def lines(self, request: str | None = None, node: str | None = None, event: str = "start") -> list[Line]:
        """The lines of one kind, for a request and a node or for all."""
        found = []
        for text in self.path.read_text().splitlines():
            line = _parse(text)
            if line.event == event and request in (None, line.request) and node in (None, line.node):
                found.append(line)
        return found

    def surplus(self, requests: Iterable[str]) -> Counter[tuple[str, str]]:
        """How often more than once each node of each request was run, where that was more than once."""
        wanted = set(requests)
        runs = Counter((line.request, line.node) for line in self.lines() if line.request in wanted)
        return Counter({key: count - 1 for key, count in runs.items() if count > 1})

    def new_file(self, name: str) -> str:
        """A path beside the ledger that does not exist yet: a gate to be opened, or a mark of what was done."""
        return str(self.path.parent / f"{name}-{os.urandom(4).hex()}")


def _parse(text: str) -> Line:
    request, node, attempt, event, pid, at, detail = text.split(",")
    return Line(request, node, attempt, event, int(pid), float(at), detail)
