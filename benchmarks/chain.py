#!/usr/bin/env python3
"""Measure a chain of three deployments over HTTP and from Python: start, memory, latency, throughput.

    python benchmarks/chain.py [--seconds 5]

Quote ratios of two runs on one machine, such as of two commits. A figure on its own says little: machines differ.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import json_request

REQUEST = b"POST / HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n5"


@qserve.deployment
class Add:
    def __init__(self, amount: int) -> None:
        self.amount = amount

    def add(self, x: int) -> int:
        return x + self.amount


@qserve.deployment
def subtract_one(x: int) -> int:
    return x - 1


first, last = Add.bind(2), Add.bind(3)
with InputNode() as number:
    output = last.add.bind(subtract_one.bind(first.add.bind(number)))
graph = DAGDriver.bind(output, http_adapter=json_request)


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def connection(port: int, until: float, times: list[float]) -> None:
    """Send one request after the other over one connection; the result of each must be 9."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < until:
        began = time.perf_counter()
        writer.write(REQUEST)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head, re.I).group(1))  # type: ignore[union-attr]
        body = await reader.readexactly(length)
        assert head.startswith(b"HTTP/1.1 200") and body == b"9", (head, body)
        times.append(time.perf_counter() - began)
    writer.close()


async def load(port: int, connections: int, seconds: float) -> tuple[float, float, float]:
    """Return the median and the 99th percentile in milliseconds, and the requests per second."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    await asyncio.gather(*(connection(port, until, times) for _ in range(connections)))
    times.sort()
    return times[len(times) // 2] * 1e3, times[int(len(times) * 0.99)] * 1e3, len(times) / seconds


def memory_mb(session: str) -> float:
    """Return the proportional memory of all processes that have the mark in their environment."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if session.encode() in (process / "environ").read_bytes():
                found = re.search(r"^Pss:\s+(\d+)", (process / "smaps_rollup").read_text(), re.M)
                total += int(found.group(1)) if found else 0
        except OSError:
            continue
    return total / 1024


def over_http(seconds: float) -> None:
    """Start the chain as a user does, and put load on it."""
    port, mark = free_port(), f"BENCH={os.urandom(6).hex()}"
    env = {**os.environ, "BENCH": mark.partition("=")[2]}
    command = [sys.executable, "-m", "qserve", "run", "chain:graph", "--port", str(port)]
    with tempfile.TemporaryFile("w+") as log:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=Path(__file__).parent, env=env, stdout=log, stderr=log)
        try:
            wait_ready(port, process)
            print(f"ready          {time.perf_counter() - began:6.2f} s")
            for connections in (1, 16, 64):
                p50, p99, rate = asyncio.run(load(port, connections, seconds))
                print(f"HTTP, {connections:2} open  p50 {p50:6.2f} ms  p99 {p99:6.2f} ms  {rate:6.0f}/s")
            print(f"memory         {memory_mb(mark):6.0f} MB")
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(10)


def wait_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait for the first correct response."""
    while True:
        assert process.poll() is None, "qserve run has ended"
        try:
            asyncio.run(load(port, 1, 0.05))
        except (OSError, AssertionError, asyncio.IncompleteReadError):
            time.sleep(0.01)
        else:
            return


def from_python(seconds: float) -> None:
    """Call the same graph through its handle."""
    handle = qserve.run(graph, port=free_port())
    times = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        assert qserve.get(handle.predict.remote(5)) == 9
        times.append(time.perf_counter() - began)
    print(f"handle         p50 {statistics.median(times) * 1e3:6.2f} ms")
    qserve.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    over_http(arguments.seconds)
    from_python(arguments.seconds)
