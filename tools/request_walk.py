#!/usr/bin/env python3
"""Print the files that one request of the chain example passes, from socket to socket, in their order.

python tools/request_walk.py
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import house

WINDOWS = 20
"""Requests that are followed; what runs beside them by chance is not in all of their windows."""
WARM_UP = 60
APP = """
import qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import json_request

@qserve.deployment
class Add:
    def __init__(self, amount):
        self.amount = amount

    def add(self, x):
        return x + self.amount

@qserve.deployment
def subtract_one(x):
    return x - 1

first, last = Add.bind(2), Add.bind(3)
with InputNode() as number:
    output = last.add.bind(subtract_one.bind(first.add.bind(number)))
graph = DAGDriver.bind(output, http_adapter=json_request)
"""


def _post(url: str) -> bytes:
    request = urllib.request.Request(url, b"5", {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return bytes(response.read())


def _wait_ready(process: subprocess.Popen[bytes], url: str) -> None:
    give_up = time.monotonic() + 60
    while True:
        try:
            assert _post(url) == b"9"
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > give_up:
                raise
            time.sleep(0.05)


def walk() -> list[str]:
    """The modules that one request passes, in the order in which it first comes to them."""
    modules = sorted(house.modules())
    width = 8 * len(modules)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "modules").write_text("\n".join(modules))
        (folder / "seen").write_bytes(bytes(width * (WINDOWS + 1)))
        (folder / "chain.py").write_text(APP)
        with (folder / "seen").open("r+b") as file, mmap.mmap(file.fileno(), 0) as seen:
            _follow(folder, seen)
            rows = [struct.unpack_from(f"{len(modules)}q", seen, width * window) for window in range(1, WINDOWS + 1)]
    always = [number for number in range(len(modules)) if all(row[number] for row in rows)]
    return [modules[number] for number in sorted(always, key=lambda number: rows[0][number])]


def _follow(folder: Path, seen: mmap.mmap) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("QSERVE_", "REDIS_URL"))}
    env |= {"QSERVE_WALK": str(folder), "PYTHONPATH": str(Path(__file__).parent / "walk")}
    command = [sys.executable, "-m", "qserve", "run", "chain:graph", "--app-dir", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/"
    try:
        _wait_ready(process, url)
        for _ in range(WARM_UP):
            _post(url)
        for window in range(1, WINDOWS + 1):
            time.sleep(0.05)  # what the request before left to do belongs to no window
            seen[0] = window
            assert _post(url) == b"9"
            seen[0] = 0
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def main() -> None:
    """Print the walk."""
    found = walk()
    print(f"{len(found)} files")
    for number, module in enumerate(found, 1):
        print(f"{number:3} {module}")


if __name__ == "__main__":
    main()
