#!/usr/bin/env python3
"""Trace one request of the chain example from socket to socket, and print the files that it passes in their order.

python tools/request_walk.py            print them
python tools/request_walk.py --write    write them into docs/architecture.md
"""

from __future__ import annotations

import argparse
import ast
import mmap
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median

import house

WINDOWS = 20
"""Requests that are traced; what runs beside them by chance does not show in all of them."""
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


@dataclass(frozen=True)
class Walk:
    """What the traced requests have in common.

    Parameters:
      modules: The modules that every one of them passed, in their usual order.
      before: Pairs of modules of which every one of them came to the first before the second.
    """

    modules: list[str]
    before: frozenset[tuple[str, str]]

    def contradictions(self, order: list[str]) -> list[tuple[str, str]]:
        """Return the pairs that ``order`` lists the wrong way round; processes at work side by side have no order."""
        return [(first, second) for first, second in combinations(order, 2) if (second, first) in self.before]


def walk() -> Walk:
    """Serve the chain example, send it requests, and return which modules they pass."""
    modules = sorted(house.modules())
    width = 8 * len(modules)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "modules").write_text("\n".join(modules))
        (folder / "seen").write_bytes(bytes(width * (WINDOWS + 1)))
        (folder / "chain.py").write_text(APP)
        with (folder / "seen").open("r+b") as file, mmap.mmap(file.fileno(), 0) as seen:
            _serve_and_ask(folder, seen)
            rows = [struct.unpack_from(f"{len(modules)}q", seen, width * window) for window in range(1, WINDOWS + 1)]
    times = {name: [row[number] for row in rows] for number, name in enumerate(modules) if all(r[number] for r in rows)}
    pairs = [(one, other) for one in times for other in times if one != other]
    before = [(one, other) for one, other in pairs if all(map(int.__lt__, times[one], times[other]))]
    orders = [sorted(times, key=lambda name: times[name][window]) for window in range(WINDOWS)]
    usual = {name: median(order.index(name) for order in orders) for name in times}
    return Walk(sorted(times, key=usual.__getitem__), frozenset(before))


def _serve_and_ask(folder: Path, seen: mmap.mmap) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("QSERVE_", "REDIS_URL"))}
    env["QSERVE_METRICS"] = "0"  # what only counts is no part of the way
    # a folder without packages would not be passed on to the processes that the command starts
    tracer = folder / "tracer"
    shutil.copytree(Path(__file__).parent / "walk", tracer)
    (tracer / "walk.dist-info").mkdir()
    env |= {"QSERVE_WALK": str(folder), "PYTHONPATH": str(tracer)}
    command = [sys.executable, "-m", "qserve", "run", "chain:graph", "--app-dir", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/"
    try:
        _wait_ready(process, url)
        for _ in range(WARM_UP):
            _post(url)
        for window in range(1, WINDOWS + 1):
            time.sleep(0.05)  # so that the work which the request before left behind is in no window
            seen[0] = window
            assert _post(url) == b"9"
            seen[0] = 0
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def documented() -> list[str]:
    """Return the files in the list of docs/architecture.md, in its order."""
    return [row[1] for row in rows()]


def file_of(module: str) -> str:
    """Return the path of a module's file, from the root of the repository."""
    return str(house.modules()[module].relative_to(house.ROOT))


def rows() -> list[list[str]]:
    """The rows of that list: number, file, what it does, what it decides."""
    lines = house.read_between("request").splitlines()
    cells = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0].isdigit()]


def table(found: Walk) -> str:
    """Return the list of files for docs/architecture.md; what a file decides is kept as it was written there."""
    decides = {row[1]: row[3] for row in rows()}
    lines = ["| | file | what it does | what it decides |", "| --- | --- | --- | --- |"]
    for number, module in enumerate(found.modules, 1):
        file = file_of(module)
        docstring = ast.get_docstring(ast.parse((house.ROOT / file).read_text())) or ""
        does = " ".join(docstring.partition("\n\n")[0].split()).replace("``", "`")
        lines.append(f"| {number} | `{file}` | {does} | {decides.get(file, '')} |")
    return "\n".join(lines)


def main() -> None:
    """Print the walk, or write it into the documentation."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the list into docs/architecture.md")
    options = parser.parse_args()
    found = walk()
    if options.write:
        house.write_between("request", table(found))
        return
    print(f"{len(found.modules)} files")
    for number, module in enumerate(found.modules, 1):
        print(f"{number:3} {file_of(module)}")


if __name__ == "__main__":
    main()
